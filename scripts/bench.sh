#!/usr/bin/env bash
# Measures sluice against Python loops and Apache Beam, and against what the machine can do, on the
# same 1280x960 JPEGs and the open-nsfw model: tables, and out/bench.json. About 8 minutes on 2 cores.
#
#   scripts/bench.sh [--images 640] [--rounds 3]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

scripts/setup.sh --peers --beam
cargo build --release --locked
cargo bench --locked --bench stages --no-run
exec .deps/venv/bin/python scripts/bench/compare.py --sluice "$(scripts/binary.sh release)" "$@"
