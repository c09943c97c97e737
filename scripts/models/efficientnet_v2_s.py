#!/usr/bin/env python3
"""Write EfficientNetV2-S as ONNX with random weights: the classifier of the GPU measurements.

    scripts/models/efficientnet_v2_s.py OUT.onnx [--precision fp16] [--seed 0]

It is as fast as the trained network, since speed does not depend on the values of weights. The network
is that of Tan and Le, "EfficientNetV2: Smaller Models and Faster Training" (2021), table 4.

- Input `input_1`: N x 384 x 384 x 3 float32, N dynamic. Output `probabilities`: N x 1000 float32.
- With --precision fp16, weights and arithmetic are 16-bit floats between two casts.
- Batch normalisation is folded into the convolutions, as exporters do.
- The seed determines the weights. They are the same numbers in both precisions, and amplify rounding
  no more than those of a trained network: see the constants below.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 1000
SIDE = 384

# fused, expansion, stride, channels out, blocks
STAGES = (
    (True, 1, 1, 24, 2),
    (True, 4, 2, 48, 4),
    (True, 4, 2, 64, 4),
    (False, 4, 2, 128, 6),
    (False, 6, 1, 160, 9),
    (False, 6, 2, 256, 15),
)
STEM, HEAD = 24, 1280
# Squeeze-and-excitation keeps a quarter of a block's input channels.
SQUEEZE = 4
# Bias before SiLU. It puts most values into the nearly linear part of SiLU; in the curved part, each layer
# would amplify the errors of the layers before it.
BIAS, BIAS_SPREAD = 1.5, 0.05
# Gain that keeps the variance through SiLU at that bias.
SILU_GAIN = 1.15
# Mean value of a squeeze-and-excitation's gate at that bias: sigmoid(1.5).
GATE = 0.82
# Gain of a residual branch: forty blocks then add up to no more than a few times their input.
BRANCH_GAIN = 0.15
# Gain of the classifier: scores of different images differ by several times the tolerance of a comparison.
CLASSIFIER_GAIN = 6.0


class Network:
    """Nodes and weights of a graph under construction."""

    def __init__(self, precision, seed):
        self.random = np.random.default_rng(seed)
        self.dtype = np.float16 if precision == "fp16" else np.float32
        self.nodes, self.weights = [], []

    def node(self, kind, inputs, **attributes):
        """Add a node; returns the name of its output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, values):
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float16).astype(self.dtype), name))
        return name

    def filters(self, *shape, gain=1.0):
        """Random weights. Those of each filter sum to zero (weight standardization: Brock et al., 2021):
        otherwise the common part of the channels would outweigh their differences."""
        weights = self.random.standard_normal(shape)
        each = tuple(range(1, len(shape)))
        weights -= weights.mean(axis=each, keepdims=True)
        return weights * (gain / np.sqrt((weights**2).sum(axis=each, keepdims=True)))

    def conv(self, x, channels_in, channels_out, kernel=1, stride=1, groups=1, gain=SILU_GAIN, bias=BIAS):
        weight = self.weight(self.filters(channels_out, channels_in // groups, kernel, kernel, gain=gain))
        bias = self.weight(bias + self.random.standard_normal(channels_out) * BIAS_SPREAD)
        pad = (kernel - 1) // 2
        return self.node(
            "Conv",
            [x, weight, bias],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=groups,
        )

    def silu(self, x):
        return self.node("Mul", [x, self.node("Sigmoid", [x])])

    def squeeze_excite(self, x, channels, squeezed):
        pooled = self.node("GlobalAveragePool", [x])
        small = self.silu(self.conv(pooled, channels, squeezed))
        return self.node("Mul", [x, self.node("Sigmoid", [self.conv(small, squeezed, channels)])])

    def block(self, x, fused, expansion, stride, channels_in, channels_out):
        """One (fused) inverted bottleneck."""
        wide = channels_in * expansion
        if fused and expansion == 1:
            y = self.silu(self.conv(x, channels_in, channels_out, kernel=3, stride=stride))
        elif fused:
            y = self.silu(self.conv(x, channels_in, wide, kernel=3, stride=stride))
            y = self.conv(y, wide, channels_out, gain=1.0, bias=0.0)
        else:
            y = self.silu(self.conv(x, channels_in, wide))
            y = self.silu(self.conv(y, wide, wide, kernel=3, stride=stride, groups=wide))
            y = self.squeeze_excite(y, wide, channels_in // SQUEEZE)
            y = self.conv(y, wide, channels_out, gain=1 / GATE, bias=0.0)
        if stride == 1 and channels_in == channels_out:
            scaled = self.node("Mul", [y, self.weight(np.array(BRANCH_GAIN))])
            return self.node("Add", [x, scaled])
        return y

    def classifier(self, image):
        x = self.node("Cast", [image], to=TensorProto.FLOAT16) if self.dtype == np.float16 else image
        x = self.node("Transpose", [x], perm=[0, 3, 1, 2])
        x = self.silu(self.conv(x, 3, STEM, kernel=3, stride=2))
        channels = STEM
        for fused, expansion, stride, channels_out, blocks in STAGES:
            for block in range(blocks):
                x = self.block(x, fused, expansion, stride if block == 0 else 1, channels, channels_out)
                channels = channels_out
        x = self.silu(self.conv(x, channels, HEAD))
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        weight = self.weight(self.filters(CLASSES, HEAD, gain=CLASSIFIER_GAIN))
        x = self.node("Gemm", [x, weight, self.weight(np.zeros(CLASSES))], transB=1)
        if self.dtype == np.float16:
            x = self.node("Cast", [x], to=TensorProto.FLOAT)
        self.nodes.append(helper.make_node("Softmax", [x], ["probabilities"], axis=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    network = Network(args.precision, args.seed)
    network.classifier("input_1")
    graph = helper.make_graph(
        network.nodes,
        "efficientnet_v2_s",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES])],
        network.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_suffix(".part")
    onnx.save(model, part)
    part.rename(args.out)
    parameters = sum(int(np.prod(weight.dims)) for weight in network.weights)
    print(f"{args.out}: {parameters / 1e6:.1f} M parameters, {args.precision}")


if __name__ == "__main__":
    main()
