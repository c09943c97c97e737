#!/usr/bin/env python3
"""Run a TensorRT-RTX engine in a Python loop, with the original protocol.

    scripts/bench/peer_tensorrt.py --engine FILE --batch 32 [--iterations 100]

Each iteration copies a batch of random float32 from pageable host memory to the GPU, runs the
engine, copies the scores back and waits for the GPU. The engine comes from `sluice build-engine`.
The execution context has the defaults of the bindings, without a CUDA graph.
Needs torch (for GPU memory and streams) and TensorRT-RTX's Python bindings of the same version
(PyPI: tensorrt-rtx-cu13-bindings==1.6.1.120). Prints one JSON object, times in seconds.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

try:
    import tensorrt_rtx as trt
except ImportError:
    import tensorrt_rtx_bindings as trt  # what `tensorrt_rtx` re-exports

DTYPES = {trt.DataType.FLOAT: torch.float32, trt.DataType.HALF: torch.float16}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--iterations", type=int, default=100)
    args = parser.parse_args()

    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(args.engine.read_bytes())
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    (input_name,) = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    context.set_input_shape(input_name, (args.batch, *list(engine.get_tensor_shape(input_name))[1:]))
    on_gpu = {}
    for name in names:
        shape = tuple(context.get_tensor_shape(name))
        on_gpu[name] = torch.empty(shape, dtype=DTYPES[engine.get_tensor_dtype(name)], device="cuda")
        context.set_tensor_address(name, on_gpu[name].data_ptr())
    (output_name,) = [name for name in names if name != input_name]
    pixels = np.random.default_rng(0).random(on_gpu[input_name].shape, dtype=np.float32)
    scores = torch.empty(on_gpu[output_name].shape, dtype=on_gpu[output_name].dtype)
    stream = torch.cuda.Stream()

    def run():
        with torch.cuda.stream(stream):
            on_gpu[input_name].copy_(torch.from_numpy(pixels))
            context.execute_async_v3(stream.cuda_stream)
            scores.copy_(on_gpu[output_name])
        stream.synchronize()

    for _ in range(max(3, args.iterations // 10)):
        run()
    seconds = []
    for _ in range(args.iterations):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    assert torch.isfinite(scores).all(), "the engine computed no scores"
    print(json.dumps({"min_s": seconds[0], "med_s": seconds[len(seconds) // 2], "max_s": seconds[-1]}))


if __name__ == "__main__":
    main()
