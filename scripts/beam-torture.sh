#!/usr/bin/env bash
# Tests and measures `sluice beam` on all runners: Beam's Python job service, Prism, Flink and Spark, alone and as
# clusters.
#
#   scripts/beam-torture.sh [--seed N] [--kills N] [--parts same,kills,repeat,cost,memory,bad] [--bin PATH]
#
#       same     one input through `sluice run` and through every runner and environment
#       kills    kills -9 of workers, pools, TaskManagers and executors at random moments
#       repeat   bundles that run three times, and forced splits
#       cost     200 shards of 100 images: Flink and Prism against `sluice run`, and against Beam's RunInference
#       memory   an idle worker, and 100,000 shards through Flink
#       bad      mistakes and lost services: the exit code, and the time until it
#
# Runs all parts by default, which takes about half an hour on 2 cores and 3 GB of disk. Ends with a table of all
# claims, and exits with 1 if one did not hold. --help lists further options. $BEAM_RUNNERS_PORT is the first of the 60
# ports that it uses, 24000 by default. Needs Linux.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

scripts/setup.sh
scripts/setup.sh --with beam
binary=()
if [[ " $* " != *" --bin"* ]]; then
    cargo build --release --locked
    binary=(--bin "$(scripts/binary.sh release)")
fi
exec .deps/beam/python/bin/python scripts/beam/torture.py "${binary[@]}" "$@"
