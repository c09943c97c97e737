//! The engines that need a GPU, each through the conformance suite. `scripts/gpu-check.sh` runs them; they are no
//! part of `cargo test`.

#[path = "support/conformance.rs"]
mod conformance;
mod support;

/// What `scripts/bench/gpu_check.py` allows between engines of 32-bit floats.
const TOLERANCE: f32 = 1e-3;

#[test]
fn tensorrt_keeps_the_contract_of_an_engine() {
    conformance::check(&["engine.kind=tensorrt"], TOLERANCE);
}

#[test]
fn onnx_runtime_with_tensorrt_keeps_the_contract_of_an_engine() {
    conformance::check(&["engine.kind=onnxruntime", "engine.provider=tensorrt-rtx"], TOLERANCE);
}

#[test]
fn onnx_runtime_with_cuda_keeps_the_contract_of_an_engine() {
    conformance::check(&["engine.kind=onnxruntime", "engine.provider=cuda"], TOLERANCE);
}
