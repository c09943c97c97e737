#!/usr/bin/env bash
# Kills, starves, lies to and shares runs until something gives: the commit protocol's own test.
#
#   scripts/torture.sh [--seed N] [--kills N] [kills|scorer|faults|zombies|two-runs|workers|endings|listing|troubles|cost]...
#
# Without a part, all of them: 15 to 30 minutes on 2 cores. Prints one table at the end and exits with 1
# if a check failed. The same seed makes the same inputs, moments and faults; the system's scheduling
# still varies. Needs Linux, and root for the disk that fills up.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

scripts/setup.sh
scripts/setup.sh --with servers
exec cargo test --locked --release --test torture -- "$@"
