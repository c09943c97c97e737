//! The differences between TensorRT-RTX and datacenter TensorRT when an engine is loaded.
//!
//! - TensorRT-RTX compiles kernels for the device when an execution context is created, which takes
//!   seconds. The contexts of an engine share the kernels, and they can be cached for the next run.
//! - A datacenter TensorRT engine contains its kernels: there is nothing to share or cache.

pub use imp::{CompiledKernels, check_plan};

#[cfg(not(feature = "datacenter"))]
mod imp {
    use std::rc::Rc;
    use std::sync::Arc;

    use trtx::DynamicShapesKernelSpecializationStrategy as Strategy;
    use trtx::{
        CudaEngine, CudaGraphStrategy, EngineInvalidityDiagnostics, EngineValidity, ExecutionContext,
        Runtime, RuntimeCache,
    };

    /// The kernels of one engine on its device.
    pub struct CompiledKernels(Arc<RuntimeCache>);

    impl CompiledKernels {
        /// Start with the `cached` kernels, if they still fit.
        pub fn new(engine: &mut CudaEngine<'_>, cached: Option<&[u8]>) -> trtx::Result<Self> {
            let cache = engine.create_runtime_config()?.create_runtime_cache()?;
            if let Some(Err(error)) = cached.map(|cached| cache.deserialize(cached)) {
                tracing::debug!(%error, "cached kernels do not fit");
            }
            Ok(Self(Arc::new(cache)))
        }

        /// All kernels compiled so far.
        pub fn serialize(&self) -> trtx::Result<Vec<u8>> {
            Ok(self.0.serialize()?.to_vec())
        }

        /// An execution context that uses these kernels, and is the only owner of its configuration.
        pub fn context(&self, engine: &mut CudaEngine<'static>) -> trtx::Result<ExecutionContext<'static>> {
            let mut config = engine.create_runtime_config()?;
            config.set_runtime_cache(Arc::clone(&self.0))?;
            // By default a generic kernel runs until the specialised one is compiled in the background.
            // The first batches would be slower than the rest, and their scores differ in the last bits.
            config.set_dynamic_shapes_kernel_specialization_strategy(Strategy::kEAGER);
            // Hundreds of kernels are launched as one CUDA graph, captured on the second run: up to 4% more images/s,
            // less with larger batches. Models that cannot be captured run without it.
            config.set_cuda_graph_strategy(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)?;
            engine.create_execution_context_with_config(Rc::new(config))
        }
    }

    /// Reject a plan for another TensorRT or another GPU with a clear message. Damage after the header is found only
    /// when the plan is loaded.
    pub fn check_plan(runtime: &Runtime<'_>, plan: &[u8]) -> Result<(), String> {
        let (validity, reasons) = runtime
            .engine_validity(plan)
            .map_err(|error| format!("this is not a TensorRT-RTX engine: {error}"))?;
        // TensorRT-RTX 1.6 reports compute capability 9.0 as unsupported, but runs on it
        let reasons = reasons.difference(EngineInvalidityDiagnostics::UNSUPPORTED_CC);
        if validity == EngineValidity::kINVALID && !reasons.is_empty() {
            return Err(format!("the engine does not fit this host: {reasons:?}"));
        }
        Ok(())
    }
}

#[cfg(feature = "datacenter")]
mod imp {
    use trtx::{CudaEngine, ExecutionContext, Runtime};

    /// Empty: the engine contains its kernels.
    pub struct CompiledKernels;

    impl CompiledKernels {
        pub fn new(_: &mut CudaEngine<'_>, _: Option<&[u8]>) -> trtx::Result<Self> {
            Ok(Self)
        }

        pub fn serialize(&self) -> trtx::Result<Vec<u8>> {
            Ok(Vec::new())
        }

        pub fn context(&self, engine: &mut CudaEngine<'static>) -> trtx::Result<ExecutionContext<'static>> {
            engine.create_execution_context()
        }
    }

    /// Nothing to check: loading reports every error.
    pub fn check_plan(_: &Runtime<'_>, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}
