#!/usr/bin/env bash
# Checks and measures the GPU engines on this host: conformance, `sluice bench`, whole runs. Prints
# tables and writes all figures to one JSON file; exits with 1 if a check failed.
#
#   scripts/gpu-check.sh [--sluice BINARY] [--engine-tests BINARY] [--json FILE] [--parts PART...]
#
# Needs neither Rust nor a registry, but the binary, the engine tests that `cargo test --locked --test gpu_engines
# --no-run` builds, EfficientNet-Lite0 (.deps/models), ONNX Runtime with its CUDA provider, TensorRT-RTX and its
# plugin (LD_LIBRARY_PATH, ORT_DYLIB_PATH), and a Python with numpy, onnx and Pillow, and with torch for the
# comparison with its DataLoader.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" scripts/bench/gpu_check.py "$@"
