#!/usr/bin/env python3
"""Write a model of a few kilobytes for tests.

Input `pixels` [N, 8, 8, 3] float32, output `scores` [N, 4] float32, softmax.

- Every pixel moves every score, smoothly: no clipping, no pooling.
- Scores stay away from 0 and 1 for pixels in 0..=1 as well as in 0..=255, so
  that a wrong resize, channel order or scale shows up in them.
- The weights are drawn from a fixed seed, so the file has the same bytes every time.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 8
FILTERS = 4
CLASSES = 4
SEED = 8

OPSET = 17
IR_VERSION = 8


def build():
    # MT19937 draws and integer division are exact everywhere; normal variates need not be.
    draws = np.random.RandomState(SEED)

    def weights(name, shape, scale):
        values = draws.randint(-1000, 1001, shape).astype(np.float32) / np.float32(1000) * np.float32(scale)
        return numpy_helper.from_array(values, name)

    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "filters"], ["filtered"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Softsign", ["filtered"], ["bounded"]),
        helper.make_node("Flatten", ["bounded"], ["features"]),
        helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [
            weights("filters", (FILTERS, 3, 3, 3), 0.05),
            weights("weight", (FILTERS * SIDE * SIDE, CLASSES), 0.2),
            weights("bias", (CLASSES,), 0.5),
        ],
    )
    return helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="sluice",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    arguments = parser.parse_args()

    model = build()
    onnx.checker.check_model(model)
    arguments.out.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
