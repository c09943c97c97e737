#!/usr/bin/env bash
# Compares the speed of a TensorRT engine on this host with ONNX Runtime with TensorRT, and with CUDA:
# EfficientNetV2-S with random weights, images of 384x384, batches of 10 and 32, fp32 and fp16. Installs
# what is missing, except for NVIDIA's driver and CUDA. A setup that cannot run has a row with the reason.
# Also writes the figures to out/bench-gpu-*.json.
#
#   scripts/bench-gpu.sh [OPTION OF sluice bench]...
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

scripts/setup.sh --with build --with python --gpu
cargo build --release --locked
sluice=$(scripts/binary.sh release)
"$sluice" doctor

mkdir -p out
for precision in fp32 fp16; do
    model=.deps/models/efficientnet-v2-s-$precision.onnx
    .deps/venv/bin/python scripts/models/efficientnet_v2_s.py "$model" --precision "$precision"
    printf '\n== %s\n' "$precision"
    "$sluice" bench --onnx "$model" --batch 10,32 --json "out/bench-gpu-$precision.json" "$@"
done
