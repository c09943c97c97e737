#!/usr/bin/env python3
"""Write an ONNX model in 16-bit floats, with 32-bit inputs and outputs.

    scripts/models/to_fp16.py IN.onnx OUT.onnx

Strongly typed engines, TensorRT-RTX among them, compute in the types that the file declares.

- Every float32 weight becomes float16; one that float16 cannot hold is an error.
- Inputs are cast on their way in and outputs on their way out, so the pipeline stays as it is.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def to_half(tensor):
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.array_equal(np.isfinite(half), np.isfinite(values)):
        sys.exit(f"weight {tensor.name} does not fit 16-bit floats: {np.abs(values).max()}")
    return numpy_helper.from_array(half, tensor.name)


def convert(graph):
    for index, weight in enumerate(graph.initializer):
        graph.initializer[index].CopyFrom(to_half(weight))
    weights = {weight.name for weight in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in weights]
    outputs = [value.name for value in graph.output]
    renamed = {name: f"{name}_fp16" for name in inputs + outputs}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                attribute.t.CopyFrom(to_half(attribute.t))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    casts_in = [
        helper.make_node("Cast", [name], [renamed[name]], name=f"{name}_in", to=TensorProto.FLOAT16)
        for name in inputs
    ]
    casts_out = [
        helper.make_node("Cast", [renamed[name]], [name], name=f"{name}_out", to=TensorProto.FLOAT)
        for name in outputs
    ]
    nodes = [*casts_in, *graph.node, *casts_out]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # its types are those of the original model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args()

    model = onnx.load(args.source)
    convert(model.graph)
    onnx.checker.check_model(model, full_check=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
