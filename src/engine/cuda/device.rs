//! The GPUs of this host, and pinned host memory.

use std::fmt;
use std::sync::{Arc, Mutex};

use cudarc::driver::{CudaContext, CudaFunction, PinnedHostSlice, sys};

use super::{CudaResult, driver};
use crate::config::Devices;
use crate::flow::lock;
use crate::items::{BatchBuffer, PixelsMut, PixelsRef};

/// One GPU.
#[derive(Clone)]
pub struct Device {
    pub(super) context: Arc<CudaContext>,
    /// Index among the devices that CUDA shows.
    pub ordinal: usize,
    /// The driver's name for it.
    pub name: String,
    /// Major and minor version.
    pub compute_capability: (i32, i32),
    /// The normalisation kernel, once it is compiled; shared by all clones.
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
/// If there is no driver, or the host does not have such a device.
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
    /// Number of GPUs of this host.
    ///
    /// # Errors
    /// If there is no driver, or it cannot be initialised.
    pub fn count() -> CudaResult<usize> {
        // SAFETY: loads a shared library by name; NVIDIA's driver library may be loaded at any time
        // and from any thread, and its initialisers touch no memory of this program.
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
        // SAFETY: cudarc then records no events, which order the uses of a buffer on several streams. Every buffer here
        // is used on a single stream, that of the lane that owns it, and host memory is touched only after that stream
        // is synchronized.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(|error| driver("cannot name the GPU", error))?;
        let compute_capability = context
            .compute_capability()
            .map_err(|error| driver("cannot ask for the compute capability", error))?;
        Ok(Self { context, ordinal, name, compute_capability, normalise: Arc::default() })
    }

    /// The normalisation kernel; `compile` is called on first use only.
    pub(super) fn normalise_function(
        &self,
        compile: impl FnOnce() -> CudaResult<CudaFunction>,
    ) -> CudaResult<CudaFunction> {
        let mut kept = lock(&self.normalise);
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
        // SAFETY: `count` has loaded the driver, and `version` outlives the call that writes to it.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(|error| driver("cannot ask for the driver's version", error))?;
        Ok(version)
    }

    /// Free and total memory, in bytes.
    pub fn memory(&self) -> CudaResult<(usize, usize)> {
        self.context.mem_get_info().map_err(|error| driver("cannot ask for the GPU's memory", error))
    }

    /// Pinned memory of `bytes` bytes, zeroed.
    pub fn pinned(&self, bytes: usize) -> CudaResult<PinnedBuffer> {
        // portable, because engines on other devices read it, too
        // SAFETY: the content is undefined after the call, and the next statement overwrites it.
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

// SAFETY: `start` points into `_memory`, which only this value owns and which may be used and freed on
// any thread.
unsafe impl Send for PinnedBuffer {}

impl PinnedBuffer {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points to `bytes` initialised bytes that live as long as `self`, and nothing writes to them
        // while `&self` is borrowed. Code that starts a device copy waits for it before the borrow ends.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` is the only access.
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
