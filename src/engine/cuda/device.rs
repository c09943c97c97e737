//! GPUs of this host, and memory that they read at full speed.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaFunction, PinnedHostSlice, sys};

use super::{CudaResult, driver};
use crate::config::Devices;
use crate::items::{BatchBuffer, PixelsMut, PixelsRef};

/// One GPU.
#[derive(Clone)]
pub struct Device {
    pub(super) context: Arc<CudaContext>,
    /// Position among the devices that CUDA shows.
    pub ordinal: usize,
    /// As the driver names it.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    /// The normalising kernel, once it was compiled. All clones share it.
    normalise: Arc<Mutex<Option<CudaFunction>>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {})", self.ordinal, self.name)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ({})", self.ordinal, self.name)
    }
}

/// The devices that a plan names.
///
/// # Errors
/// Without a driver, or when the host has no such device.
pub fn devices(wanted: &Devices) -> CudaResult<Vec<Device>> {
    let ordinals = match wanted {
        Devices::All(_) => (0..Device::count()?).collect(),
        Devices::List(ordinals) => ordinals.clone(),
    };
    if ordinals.is_empty() {
        return Err("this host has no GPU, or CUDA_VISIBLE_DEVICES hides it".to_owned());
    }
    ordinals.into_iter().map(Device::open).collect()
}

impl Device {
    /// GPUs of this host.
    ///
    /// # Errors
    /// Without a driver, or when it cannot be initialised.
    pub fn count() -> CudaResult<usize> {
        // SAFETY: opens a shared library by its name, which runs no code of ours; NVIDIA's driver
        // library may be loaded at any time and from any thread.
        if !unsafe { sys::is_culib_present() } {
            return Err("NVIDIA's driver was not found: no libcuda.so.1 on the library path".to_owned());
        }
        match CudaContext::device_count() {
            Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
            Err(error) => Err(driver("cannot count the GPUs", error)),
        }
    }

    /// Open GPU `ordinal`.
    pub fn open(ordinal: usize) -> CudaResult<Self> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(format!("there is no GPU {ordinal}: this host shows {count}"));
        }
        let context = CudaContext::new(ordinal)
            .map_err(|error| driver(&format!("cannot open GPU {ordinal}"), error))?;
        // SAFETY: events that order the uses of a buffer on several streams are not recorded any
        // more. Every buffer of ours is used on the one stream of the lane that owns it, and host
        // memory is touched only after that stream has been waited for.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(|error| driver("cannot name the GPU", error))?;
        let compute_capability = context
            .compute_capability()
            .map_err(|error| driver("cannot ask for the compute capability", error))?;
        Ok(Self { context, ordinal, name, compute_capability, normalise: Arc::default() })
    }

    /// The normalising kernel; `compile` is called for the first who asks.
    pub(super) fn normalise_function(
        &self,
        compile: impl FnOnce() -> CudaResult<CudaFunction>,
    ) -> CudaResult<CudaFunction> {
        let mut kept = self.normalise.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(function) => Ok(function.clone()),
            None => Ok(kept.insert(compile()?).clone()),
        }
    }

    /// Make this the calling thread's device.
    pub fn make_current(&self) -> CudaResult<()> {
        self.context.bind_to_thread().map_err(|error| driver("cannot use the GPU", error))
    }

    /// Version of the driver's CUDA: 13000 is 13.0.
    pub fn driver_version() -> CudaResult<i32> {
        Self::count()?;
        let mut version = 0;
        // SAFETY: the driver is there (`count`), and `version` outlives the call that writes to it.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(|error| driver("cannot ask for the driver's version", error))?;
        Ok(version)
    }

    /// Free and total memory, bytes.
    pub fn memory(&self) -> CudaResult<(usize, usize)> {
        self.context.mem_get_info().map_err(|error| driver("cannot ask for the GPU's memory", error))
    }

    /// Pinned memory for `bytes` bytes, zeroed.
    pub fn pinned(&self, bytes: usize) -> CudaResult<PinnedBuffer> {
        // portable: engines on other devices read it too
        // SAFETY: the content is undefined after the call and is written in the next statement.
        let mut memory = unsafe {
            self.context.alloc_pinned_with_flags::<u8>(bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE)
        }
        .map_err(|error| driver(&format!("cannot pin {bytes} bytes of host memory"), error))?;
        memory.as_mut_slice().map_err(|error| driver("cannot use pinned memory", error))?.fill(0);
        let start = memory.as_mut_ptr().map_err(|error| driver("cannot use pinned memory", error))?;
        Ok(PinnedBuffer { start, bytes, _memory: memory })
    }
}

/// Page-locked host memory for the bytes of one batch.
#[derive(Debug)]
pub struct PinnedBuffer {
    start: *mut u8,
    bytes: usize,
    /// Freed with this value.
    _memory: PinnedHostSlice<u8>,
}

// SAFETY: `start` points into `_memory`, which this value alone owns and which may be used and
// freed on any thread.
unsafe impl Send for PinnedBuffer {}

impl PinnedBuffer {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points to `bytes` initialised bytes that live as long as `self`, and
        // `&self` keeps them from being written. Copies by a device are waited for by whoever
        // starts them, before they give the borrow back.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl BatchBuffer for PinnedBuffer {
    fn pixels(&self) -> PixelsRef<'_> {
        PixelsRef::U8(self.bytes())
    }

    fn pixels_mut(&mut self) -> PixelsMut<'_> {
        PixelsMut::U8(self.bytes_mut())
    }
}
