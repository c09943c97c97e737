#!/usr/bin/env python3
"""Tests and measures `sluice beam` on all runners; scripts/beam-torture.sh calls this.

Each part prints one line per claim, and the program ends with a table of all claims. The seed determines everything
random: inputs, the moments and targets of kills. The system's scheduling still varies.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import bad
import cost
import kills
import memory
import repeat
import same
from commands import Sluice
from trial import Torture

PARTS = {module.__name__: module.part for module in (same, kills, repeat, cost, memory, bad)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, required=True, metavar="PATH", help="the release binary")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="all by default")
    parser.add_argument("--kills", type=int, default=100, help="kills -9 in total (100)")
    parser.add_argument("--cost-shards", type=int, default=200, metavar="N", help="shards of 100 images (200)")
    parser.add_argument("--cost-rounds", type=int, default=3, metavar="N", help="runs of each setup (3)")
    parser.add_argument("--memory-shards", type=int, default=100_000, metavar="N", help="shards of an image (100000)")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]}, expected one of {', '.join(PARTS)}")
    # end the runners on a signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    sluice = Sluice(args.bin)
    torture = Torture(sluice, args.seed, args.kills, args.cost_shards, args.cost_rounds, args.memory_shards)
    print(f"seed {args.seed}, {os.cpu_count()} cores, {sluice.start('--version').wait().text.strip()}")
    for name in parts:
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        PARTS[name](torture)
        print(f"  {name} took {time.monotonic() - started:.0f} s", flush=True)
    print(f"\n{torture.claims.table()}\n\nseed {args.seed}")
    if torture.claims.failed():
        sys.exit(1)


if __name__ == "__main__":
    main()
