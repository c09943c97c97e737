#!/usr/bin/env bash
# Measures sluice, Python loops and Apache Beam on the same 1280x960 JPEGs with the open-nsfw model, and compares them
# with decoding and inference alone. Prints tables and writes out/bench.json. Takes about 8 minutes on 2 cores.
#
#   scripts/bench.sh [--images 640] [--rounds 3]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

scripts/setup.sh --peers
scripts/setup.sh --with beam-python
cargo build --release --locked
cargo bench --locked --bench stages --no-run
exec .deps/venv/bin/python scripts/bench/compare.py --sluice "$(scripts/binary.sh release)" "$@"
