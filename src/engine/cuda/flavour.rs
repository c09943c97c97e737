//! What TensorRT-RTX and datacenter TensorRT do differently once an engine is loaded.
//!
//! - TensorRT-RTX compiles kernels for the device when a context is made, which takes seconds. The
//!   contexts of an engine share them, and they can be kept for the next run.
//! - Datacenter TensorRT has them in the engine: there is nothing to share or keep.

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
        /// Begin with those that were `kept`, if they still fit.
        pub fn new(engine: &mut CudaEngine<'_>, kept: Option<&[u8]>) -> trtx::Result<Self> {
            let cache = engine.create_runtime_config()?.create_runtime_cache()?;
            if let Some(Err(error)) = kept.map(|kept| cache.deserialize(kept)) {
                tracing::debug!(%error, "kept kernels do not fit");
            }
            Ok(Self(Arc::new(cache)))
        }

        /// All that were compiled so far.
        pub fn serialize(&self) -> trtx::Result<Vec<u8>> {
            Ok(self.0.serialize()?.to_vec())
        }

        /// A context that uses them. It is the only owner of its configuration.
        pub fn context(&self, engine: &mut CudaEngine<'static>) -> trtx::Result<ExecutionContext<'static>> {
            let mut config = engine.create_runtime_config()?;
            config.set_runtime_cache(Arc::clone(&self.0))?;
            // the default runs another kernel until the right one is compiled in the background:
            // then the first batches would be slower than the rest, and differ in their last bits
            config.set_dynamic_shapes_kernel_specialization_strategy(Strategy::kEAGER);
            // hundreds of kernels are enqueued as one graph, captured on the second run: up to 4% more
            // images/s, the less the larger the batch; what cannot be captured runs without
            config.set_cuda_graph_strategy(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)?;
            engine.create_execution_context_with_config(Rc::new(config))
        }
    }

    /// Refuse a plan of another TensorRT or another GPU in words of its own; what is wrong behind the
    /// header shows only when it is loaded.
    pub fn check_plan(runtime: &Runtime<'_>, plan: &[u8]) -> Result<(), String> {
        let (validity, reasons) = runtime
            .engine_validity(plan)
            .map_err(|error| format!("this is no TensorRT-RTX engine: {error}"))?;
        // 1.6 calls compute capability 9.0 unsupported, and runs there all the same
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

    /// Nothing: the engine has its kernels.
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

    /// Loading says it all.
    pub fn check_plan(_: &Runtime<'_>, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}
