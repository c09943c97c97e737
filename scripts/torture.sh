#!/usr/bin/env bash
# Tests the commit protocol: kills runs, injects faults into their stores, and shares outputs between attempts.
#
#   scripts/torture.sh [--seed N] [--kills N] [kills|scorer|faults|zombies|two-runs|workers|endings|listing|troubles|cost]...
#
# Runs all parts by default, which takes 15 to 30 minutes on 2 cores. Ends with a table of all claims, and exits with 1
# if one did not hold. The same seed gives the same inputs, moments and faults; the system's scheduling still varies.
# Needs Linux, and root for the disk that fills up.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

scripts/setup.sh
scripts/setup.sh --with servers
exec cargo test --locked --release --test torture -- "$@"
