//! The normalisation kernel, which turns copied pixels into the engine's input tensor: cast, scale, mean
//! and standard deviation, channel order and layout, in one pass.
//!
//! - Its arithmetic is that of the CPU's tensor writer: `(pixel * scale - mean) / std`, each step
//!   rounded to `f32`, and the result to half precision if the engine takes that.
//! - NVRTC compiles it once for each device of a process, in about 50 ms.

use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

use super::runner::DeviceMemory;
use super::{CudaResult, Device, driver};
use crate::config::{Color, Layout, PreprocessSection};

const SOURCE: &str = r#"
// One thread for each element of the tensor, so that writes are coalesced.
extern "C" __global__ void normalise(
    const unsigned char *rgb, void *tensor, unsigned int elements, unsigned int plane,
    int nchw, int bgr, int half, float scale,
    float mean0, float mean1, float mean2, float std0, float std1, float std2)
{
    unsigned int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= elements) return;
    unsigned int pixel, channel;
    if (nchw) {
        unsigned int image = index / (3 * plane);
        unsigned int inside = index - image * 3 * plane;
        channel = inside / plane;
        pixel = image * plane + (inside - channel * plane);
    } else {
        pixel = index / 3;
        channel = index - pixel * 3;
    }
    float mean = channel == 0 ? mean0 : channel == 1 ? mean1 : mean2;
    float std = channel == 0 ? std0 : channel == 1 ? std1 : std2;
    float value = (float)rgb[(size_t)pixel * 3 + (bgr ? 2 - channel : channel)];
    value = __fdiv_rn(__fsub_rn(__fmul_rn(value, scale), mean), std);
    if (half) {
        unsigned short bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        ((unsigned short *)tensor)[index] = bits;
    } else {
        ((float *)tensor)[index] = value;
    }
}
"#;

/// Version of NVRTC, major and minor.
pub fn nvrtc_version() -> CudaResult<(i32, i32)> {
    // SAFETY: loads a shared library by name, whose initialisers touch no memory of this program.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err("NVRTC was not found: no libnvrtc.so on the library path".to_owned());
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is loaded, and both variables outlive the call that writes to them.
    unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }
        .result()
        .map_err(|error| format!("cannot ask for NVRTC's version: {error:?}"))?;
    Ok((major, minor))
}

/// Threads of a block: enough to hide memory latency, few enough for any device.
const BLOCK_THREADS: u32 = 256;

/// The compiled kernel and its arguments.
#[derive(Clone, Debug)]
pub struct Normalise {
    function: CudaFunction,
    elements: u32,
    /// Pixels of one image.
    plane: u32,
    nchw: bool,
    bgr: bool,
    half: bool,
    scale: f32,
    mean: [f32; 3],
    std: [f32; 3],
}

fn compile(device: &Device) -> CudaResult<CudaFunction> {
    nvrtc_version()?;
    let (major, minor) = device.compute_capability;
    let options = CompileOptions {
        options: vec![format!("--gpu-architecture=compute_{major}{minor}")],
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(SOURCE, options)
        .map_err(|error| format!("NVRTC cannot compile the normalisation kernel: {error:?}"))?;
    device
        .context
        .load_module(ptx)
        .and_then(|module| module.load_function("normalise"))
        .map_err(|error| driver("cannot load the normalisation kernel", error))
}

impl Normalise {
    /// The kernel for batches of `batch_size` images, with the normalisation and layout of `preprocess`;
    /// the tensor holds 16-bit floats if `half`.
    pub fn new(
        device: &Device,
        preprocess: &PreprocessSection,
        batch_size: usize,
        half: bool,
    ) -> CudaResult<Self> {
        let size = preprocess.tensor_size();
        let plane = size.width * size.height;
        let elements = u32::try_from(batch_size as u64 * u64::from(plane) * 3)
            .map_err(|_| format!("a batch of {batch_size} images has 2^32 elements or more"))?;
        let function = device.normalise_function(|| compile(device))?;
        Ok(Self {
            function,
            elements,
            plane,
            nchw: preprocess.layout == Layout::Nchw,
            bgr: preprocess.color == Color::Bgr,
            half,
            scale: preprocess.scale,
            mean: preprocess.mean,
            std: preprocess.std,
        })
    }

    /// Elements of the tensor.
    pub(super) fn elements(&self) -> usize {
        self.elements as usize
    }

    /// Bytes of the tensor.
    pub(super) fn tensor_bytes(&self) -> usize {
        self.elements() * if self.half { 2 } else { 4 }
    }

    /// Enqueue the kernel on `stream`; it reads `rgb` and writes `tensor`.
    pub(super) fn launch(
        &self,
        stream: &CudaStream,
        rgb: &CudaSlice<u8>,
        tensor: DeviceMemory,
    ) -> CudaResult<()> {
        assert!(rgb.len() >= self.elements() && tensor.bytes >= self.tensor_bytes());
        let (nchw, bgr, half) = (i32::from(self.nchw), i32::from(self.bgr), i32::from(self.half));
        let grid = self.elements.div_ceil(BLOCK_THREADS);
        let config =
            LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (BLOCK_THREADS, 1, 1), shared_mem_bytes: 0 };
        let mut launch = stream.launch_builder(&self.function);
        launch.arg(rgb).arg(&tensor.address).arg(&self.elements).arg(&self.plane);
        launch.arg(&nchw).arg(&bgr).arg(&half).arg(&self.scale);
        for value in self.mean.iter().chain(&self.std) {
            launch.arg(value);
        }
        // SAFETY: the arguments match the parameters of `SOURCE` in order and type. Thread `index` reads
        // byte `pixel * 3 + channel` < `elements` of `rgb` and writes element `index` < `elements` of
        // `tensor`; both are long enough, as asserted above.
        unsafe { launch.launch(config) }
            .map(|_| ())
            .map_err(|error| driver("cannot start the normalisation kernel", error))
    }
}
