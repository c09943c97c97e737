//! The conformance suite on the engine that needs no GPU.

#[path = "support/conformance.rs"]
mod conformance;
mod support;

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn onnx_runtime_on_the_cpu_keeps_the_contract_of_an_engine() {
    conformance::check(&["engine.kind=onnxruntime", "engine.provider=cpu"], 0.0);
}
