//! Examines this host: its GPUs and libraries, and which engines can run on it.
//!
//! - A library is searched for with the code that a run uses.
//! - An ONNX Runtime provider counts as usable if a session with it opens a model of a few kB; TensorRT, if its
//!   runtime, its parser, the driver and NVRTC are present.

use crate::config::Provider;
use crate::engine::cuda::{Device, driver_release, find_library, nvrtc_version};
use crate::engine::{self, tensorrt};

/// One thing that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked for.
    pub name: String,
    /// Whether it can be used.
    pub found: bool,
    /// Version and place, or why it cannot be used.
    pub detail: String,
}

impl Finding {
    fn new(name: impl Into<String>, looked: Result<String, String>) -> Self {
        let found = looked.is_ok();
        let detail = looked.unwrap_or_else(|reason| reason).split_whitespace().collect::<Vec<_>>().join(" ");
        Self { name: name.into(), found, detail }
    }
}

/// All findings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// The machine's driver and GPUs.
    pub host: Vec<Finding>,
    /// Shared libraries that engines load.
    pub libraries: Vec<Finding>,
    /// Engines, each with whether it can run here.
    pub engines: Vec<Finding>,
}

/// Libraries that ONNX Runtime's providers open themselves.
const PROVIDER_LIBRARIES: [(&str, &str); 5] = [
    ("cuBLAS", "libcublas.so.13"),
    ("cuDNN", "libcudnn.so.9"),
    ("cuRAND", "libcurand.so.10"),
    ("CUDA runtime", "libcudart.so.13"),
    ("TensorRT 10", "libnvinfer.so.10"),
];

/// Examine everything.
pub fn examine() -> Findings {
    let driver = Device::driver_version().map(|version| {
        let release = driver_release().unwrap_or_else(|_| "of unknown release".to_owned());
        format!("{release}, CUDA {}.{}", version / 1000, version % 1000 / 10)
    });
    let mut host = vec![Finding::new("NVIDIA driver", driver.clone())];
    for ordinal in 0..Device::count().unwrap_or_default() {
        host.push(Finding::new(format!("GPU {ordinal}"), gpu(ordinal)));
    }
    let nvrtc = nvrtc_version().map(|(major, minor)| {
        let place = find_library("libnvrtc.so").or_else(|_| find_library("libnvrtc.so.13"));
        format!("{major}.{minor}, {}", place.unwrap_or_else(|_| "on the library path".to_owned()))
    });
    let (runtime, parser) = (tensorrt::probe_runtime(), tensorrt::probe_parser());
    let plugin = engine::find_tensorrt_plugin().map(|path| path.display().to_string());
    let mut libraries = vec![
        Finding::new("NVRTC", nvrtc.clone()),
        Finding::new(tensorrt::release(), runtime.clone()),
        Finding::new("its ONNX parser", parser.clone()),
        Finding::new("ONNX Runtime", engine::probe_onnxruntime()),
        Finding::new("its TensorRT-RTX plugin", plugin),
    ];
    for (what, name) in PROVIDER_LIBRARIES {
        libraries.push(Finding::new(what, find_library(name)));
    }
    let able = (0..Device::count().unwrap_or_default())
        .map(|ordinal| tensorrt::check_capability(Device::open(ordinal)?.compute_capability))
        .collect::<Result<Vec<_>, _>>()
        .and_then(|gpus| if gpus.is_empty() { Err("there is no GPU".to_owned()) } else { Ok(()) });
    let tensorrt =
        driver.and(nvrtc).and(runtime).and(parser).and(able).map(|()| "kind = \"tensorrt\"".to_owned());
    let mut engines = vec![Finding::new("tensorrt", tensorrt)];
    for provider in [Provider::TensorrtRtx, Provider::Tensorrt, Provider::Cuda, Provider::Cpu] {
        let usable = engine::probe_provider(provider)
            .map(|()| format!("kind = \"onnxruntime\", provider = \"{}\"", provider.as_str()));
        engines.push(Finding::new(format!("onnxruntime, {}", provider.as_str()), usable));
    }
    Findings { host, libraries, engines }
}

fn gpu(ordinal: usize) -> Result<String, String> {
    let device = Device::open(ordinal)?;
    let (free, total) = device.memory()?;
    let (major, minor) = device.compute_capability;
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    Ok(format!(
        "{}, compute capability {major}.{minor}, {:.1} of {:.1} GiB free",
        device.name,
        gib(free),
        gib(total)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_gpu_can_be_examined() {
        let findings = examine();
        let engines: Vec<_> = findings.engines.iter().map(|engine| engine.name.as_str()).collect();
        let expected = [
            "tensorrt",
            "onnxruntime, tensorrt-rtx",
            "onnxruntime, tensorrt",
            "onnxruntime, cuda",
            "onnxruntime, cpu",
        ];
        assert_eq!(engines, expected);
        for finding in findings.host.iter().chain(&findings.libraries).chain(&findings.engines) {
            assert!(!finding.detail.is_empty(), "{} has no detail", finding.name);
        }
    }

    #[test]
    #[ignore = "needs scripts/setup.sh --with onnxruntime"]
    fn the_cpu_engine_is_usable_where_onnx_runtime_is_installed() {
        let findings = examine();
        assert!(findings.engines[4].found, "{:?}", findings.engines[4]);
    }
}
