//! The conformance suite on each engine that needs a GPU. `scripts/gpu-check.sh` runs these tests; `cargo test` leaves
//! them out.

#[path = "support/conformance.rs"]
mod conformance;
mod support;

/// The tolerance of `scripts/bench/gpu_check.py` for engines of 32-bit floats.
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
