#!/usr/bin/env bash
# Runs sluice on 20,000 images, on a 2 GB tar and on 1,000 shards, and measures peak memory and speed. Prints tables and
# writes out/soak.json. Takes about 20 minutes on 2 cores and 5 GB of disk.
#
#   scripts/soak.sh [--parts many large shards] [--images 20000] [--tar-gb 2] [--rounds 3]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

scripts/setup.sh --peers
cargo build --release --locked
exec .deps/venv/bin/python scripts/bench/soak.py --sluice "$(scripts/binary.sh release)" "$@"
