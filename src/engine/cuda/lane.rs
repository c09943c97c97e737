//! A lane: a CUDA stream of a device, with all the memory that its batches use.
//!
//! - For each batch the lane copies the pixels from pinned memory, normalises them, runs the model, and
//!   copies the scores back. CUDA events time each step.
//! - The lane's [`Runner`] runs the model: a TensorRT execution context, or an ONNX Runtime session with
//!   its input and output bound to device memory.
//! - [`Lane::run`] returns, or unwinds from a panic, only after its stream is idle, so that no borrowed memory
//!   is still in use.
//! - Two lanes of one device overlap: while one copies, the other computes.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, result, sys};

use super::runner::{DeviceMemory, Runner};
use super::{CudaResult, Device, Normalise, PinnedBuffer, driver};

/// Time of each step of one batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LaneTimes {
    /// Host to device copy.
    pub h2d: Duration,
    /// Normalisation and inference.
    pub compute: Duration,
    /// Device to host copy.
    pub d2h: Duration,
}

/// Polls per batch. On average a batch ends in the middle of the sleep between two polls, which wastes 1%
/// of its time.
const POLLS: u32 = 50;

/// Bounds of the sleep between two polls. The system sleeps about 50 µs longer than requested.
const SHORTEST_SLEEP: Duration = Duration::from_micros(20);
const LONGEST_SLEEP: Duration = Duration::from_micros(400);

/// A runner with its stream, and the memory for pixels and scores.
pub struct Lane<R> {
    // dropped first: it uses the stream
    runner: R,
    stream: Arc<CudaStream>,
    /// Before and after each step.
    events: [CudaEvent; 4],
    kernel: Normalise,
    pixels: CudaSlice<u8>,
    host_scores: PinnedBuffer,
    /// Time of the last batch on the device.
    last: Duration,
}

impl<R> std::fmt::Debug for Lane<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("kernel", &self.kernel).finish_non_exhaustive()
    }
}

impl<R: Runner> Lane<R> {
    /// A lane on `device` for batches that `kernel` normalises; `make` creates the runner on the lane's
    /// stream.
    pub fn new(
        device: &Device,
        kernel: Normalise,
        make: impl FnOnce(&Arc<CudaStream>) -> CudaResult<R>,
    ) -> CudaResult<Self> {
        device.make_current()?;
        let stream = device.context.new_stream().map_err(|error| driver("cannot make a stream", error))?;
        let event = || {
            let flags = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC;
            device.context.new_event(Some(flags)).map_err(|error| driver("cannot make an event", error))
        };
        let events = [event()?, event()?, event()?, event()?];
        let pixels = zeros(&stream, kernel.elements())?;
        let runner = make(&stream)?;
        if runner.tensor().bytes < kernel.tensor_bytes() {
            return Err(format!(
                "its input holds {} bytes, a batch has {}",
                runner.tensor().bytes,
                kernel.tensor_bytes()
            ));
        }
        let host_scores = device.pinned(runner.scores().bytes)?;
        stream.synchronize().map_err(|error| driver("cannot prepare GPU memory", error))?;
        Ok(Self { runner, stream, events, kernel, pixels, host_scores, last: Duration::ZERO })
    }

    /// Scores of a full batch of RGB bytes.
    pub fn run(&mut self, rgb: &[u8]) -> CudaResult<(Vec<f32>, LaneTimes)> {
        let stream = Arc::clone(&self.stream);
        let enqueue = || {
            self.enqueue(rgb)?;
            self.sleep_until_done();
            Ok(())
        };
        lend(enqueue, || finish(&stream))?;
        let [start, copied, computed, end] = &self.events;
        let time = |from: &CudaEvent, to: &CudaEvent| {
            let ms = from.elapsed_ms(to).map_err(|error| driver("cannot read the GPU's clock", error))?;
            Ok::<_, String>(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
        };
        let times = LaneTimes {
            h2d: time(start, copied)?,
            compute: time(copied, computed)?,
            d2h: time(computed, end)?,
        };
        self.last = times.h2d + times.compute + times.d2h;
        Ok((floats(self.host_scores.bytes(), self.runner.half_scores()), times))
    }

    /// Poll until the batch is done, sleeping in between so that the core can decode. The driver's own wait functions
    /// either spin or return a quarter of a millisecond late.
    fn sleep_until_done(&self) {
        let [.., end] = &self.events;
        let pause = (self.last / POLLS).clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
        // an error ends the loop, too; synchronizing the stream reports it
        while let Ok(false) = end.try_is_complete() {
            std::thread::sleep(pause);
        }
    }

    fn enqueue(&mut self, rgb: &[u8]) -> CudaResult<()> {
        assert_eq!(rgb.len(), self.kernel.elements(), "a batch has the engine's shape");
        let Self { runner, stream, events, kernel, pixels, host_scores, .. } = self;
        let [start, copied, computed, end] = events;
        let record =
            |event: &CudaEvent| event.record(stream).map_err(|error| driver("cannot record an event", error));
        record(start)?;
        stream.memcpy_htod(rgb, pixels).map_err(copying)?;
        record(copied)?;
        kernel.launch(stream, pixels, runner.tensor())?;
        runner.run(stream)?;
        record(computed)?;
        // SAFETY: both are as long as the scores. The device memory belongs to the runner and the host
        // memory to the lane, and `run` synchronizes the stream before either is used again.
        unsafe {
            result::memcpy_dtoh_async(host_scores.bytes_mut(), runner.scores().address, stream.cu_stream())
        }
        .map_err(copying)?;
        record(end)
    }

    /// Whether the model takes 32-bit floats.
    pub fn takes_floats(&self) -> bool {
        self.runner.tensor().bytes == self.kernel.elements() * size_of::<f32>()
    }

    /// Scores of a full batch of normalised pixels in pageable memory: copied in, run and copied out as
    /// a straightforward program would. For benchmarks only.
    ///
    /// # Errors
    /// As [`Lane::run`], and if the model takes 16-bit floats.
    pub fn run_floats(&mut self, tensor: &[f32]) -> CudaResult<Vec<f32>> {
        let into = self.runner.tensor();
        if into.bytes != size_of_val(tensor) {
            return Err(format!(
                "its input holds {} bytes, the batch has {}",
                into.bytes,
                size_of_val(tensor)
            ));
        }
        // the raw copies below use the thread's current device
        self.stream.context().bind_to_thread().map_err(|error| driver("cannot use the GPU", error))?;
        let mut scores = vec![0_u8; self.runner.scores().bytes];
        let stream = Arc::clone(&self.stream);
        lend(|| self.enqueue_floats(tensor, into, &mut scores), || finish(&stream))?;
        Ok(floats(&scores, self.runner.half_scores()))
    }

    fn enqueue_floats(&mut self, tensor: &[f32], into: DeviceMemory, scores: &mut [u8]) -> CudaResult<()> {
        let from = self.runner.scores();
        assert_eq!(scores.len(), from.bytes, "there is room for every score");
        // SAFETY: `into` is memory of the runner, as long as `tensor`, as the caller has checked. The caller
        // synchronizes the stream before its borrow of `tensor` ends.
        unsafe { result::memcpy_htod_async(into.address, tensor, self.stream.cu_stream()) }
            .map_err(copying)?;
        self.runner.run(&self.stream)?;
        // SAFETY: `scores` is as long as the runner's memory, and its owner synchronizes the stream before it
        // uses or frees it.
        unsafe { result::memcpy_dtoh_async(scores, from.address, self.stream.cu_stream()) }.map_err(copying)
    }
}

/// Do `work`, which lends borrowed memory to a device, then `wait` until the device no longer uses it. `wait` is also
/// called if `work` fails, because work enqueued before the failure continues, and if `work` panics, because unwinding
/// frees the memory.
fn lend<T>(work: impl FnOnce() -> CudaResult<T>, wait: impl Fn() -> CudaResult<()>) -> CudaResult<T> {
    struct WaitOnPanic<W: Fn() -> CudaResult<()>>(W);
    impl<W: Fn() -> CudaResult<()>> Drop for WaitOnPanic<W> {
        fn drop(&mut self) {
            if std::thread::panicking()
                && let Err(error) = (self.0)()
            {
                tracing::debug!(error, "a GPU failed after a panic in its lane");
            }
        }
    }
    let guard = WaitOnPanic(wait);
    let done = work();
    let waited = (guard.0)();
    done.and_then(|done| waited.map(|()| done))
}

/// Synchronize the stream.
fn finish(stream: &CudaStream) -> CudaResult<()> {
    // SAFETY: the stream lives until the call returns. `CudaStream::synchronize` would return immediately if an
    // earlier error of the context has not been reported yet.
    unsafe { result::stream::synchronize(stream.cu_stream()) }
        .map_err(|error| driver("the GPU failed", error))
}

impl<R> Drop for Lane<R> {
    /// Make the lane's device current, and wait until it no longer uses the memory that is dropped next.
    fn drop(&mut self) {
        if let Err(error) = self.stream.context().bind_to_thread() {
            tracing::debug!(%error, "a GPU failed before its lane was dropped");
        }
        // SAFETY: the stream is dropped after this call.
        if let Err(error) = unsafe { result::stream::synchronize(self.stream.cu_stream()) } {
            tracing::debug!(%error, "a GPU failed before its lane was dropped");
        }
    }
}

/// `bytes` of device memory, zeroed.
pub(super) fn zeros(stream: &Arc<CudaStream>, bytes: usize) -> CudaResult<CudaSlice<u8>> {
    stream
        .alloc_zeros::<u8>(bytes)
        .map_err(|error| driver(&format!("cannot take {bytes} bytes of GPU memory"), error))
}

fn copying(error: cudarc::driver::DriverError) -> String {
    driver("cannot copy between host and GPU", error)
}

fn floats(bytes: &[u8], half: bool) -> Vec<f32> {
    if half {
        bytes.as_chunks().0.iter().map(|&bits| half::f16::from_ne_bytes(bits).to_f32()).collect()
    } else {
        bytes.as_chunks().0.iter().map(|&bits| f32::from_ne_bytes(bits)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    #[test]
    fn work_on_lent_memory_is_awaited_on_success_and_on_failure() {
        let waits = Cell::new(0);
        let wait = || {
            waits.set(waits.get() + 1);
            Ok(())
        };
        assert_eq!(lend(|| Ok(7), wait), Ok(7));
        assert_eq!(lend(|| Err::<(), _>("refused".to_owned()), wait), Err("refused".to_owned()));
        assert_eq!(lend(|| Ok(()), || Err("gone".to_owned())), Err("gone".to_owned()));
        assert_eq!(waits.get(), 2);
    }

    #[test]
    fn a_panic_frees_lent_memory_only_after_the_device_is_idle() {
        struct Buffer<'a>(&'a RefCell<Vec<&'static str>>);
        impl Drop for Buffer<'_> {
            fn drop(&mut self) {
                self.0.borrow_mut().push("freed");
            }
        }
        let events = RefCell::new(Vec::new());
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _pinned = Buffer(&events);
            let wait = || {
                events.borrow_mut().push("idle");
                Ok(())
            };
            lend(|| -> CudaResult<()> { panic!("in the middle of a copy") }, wait)
        }));
        assert!(unwound.is_err());
        assert_eq!(events.into_inner(), ["idle", "freed"]);
    }
}
