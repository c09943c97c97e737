#!/usr/bin/env python3
"""Run sluice on many images, large shards and many shards, and measure it; scripts/soak.sh calls this.

| part   | input                                                   | demand                            |
| ------ | ------------------------------------------------------- | --------------------------------- |
| many   | --images small photos in 10 tars, then twice as many    | peak RSS below 700 MB, not higher |
| large  | a tar of --tar-gb with 12-megapixel photos, then of 2x  | the same                          |
| shards | --shard-images small photos in 10 tars and in 1,000     | images/s within 10%               |

- The parts many and shards use 320x240 photos: they test the number of images and shards, and small
  photos keep decoding short.
- Images repeat under different names; --distinct is the number of different small photos. Twice as many
  tars are hard links.
- The rounds of the part shards alternate; the ratio is the median of the ratios within each round.
- Peak RSS is the kernel's figure for the process.
"""

import argparse
import json
import os
import shutil
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from statistics import median

import dataset
import metered

ROOT = Path(__file__).parents[2]
SMALL = dataset.Kind(320, 240)
LARGE = dataset.Kind(4000, 3000, quality=92, noise=4.0)
LARGE_DISTINCT = 24

RSS_LIMIT_MB = 700
# Growth that counts as "no higher": repeated runs vary, since allocators keep some memory.
RSS_NOISE = 1.05
SPEED_TOLERANCE = 0.10
FEW_SHARDS, MANY_SHARDS = 10, 1000


def write_tar(path, images, numbers):
    """Write a WebDataset tar. Image `number` of the run is one of `images`, with a name of its own."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            image = images[number % len(images)]
            member = tarfile.TarInfo(f"{number:08}.jpg")
            member.size = len(image)
            tar.addfile(member, BytesIO(image))


def write_shards(folder, images, count, shards):
    """Write `count` images to `shards` tars; returns their glob."""
    folder.mkdir()
    for shard in range(shards):
        numbers = range(count * shard // shards, count * (shard + 1) // shards)
        write_tar(folder / f"shard-{shard:05}.tar", images, numbers)
    return folder / "*.tar"


def write_twice(folder, once):
    """Link each shard of a glob twice; returns the glob of the links."""
    folder.mkdir()
    for shard in sorted(once.parent.glob(once.name)):
        for copy in ("a", "b"):
            os.link(shard, folder / f"{copy}-{shard.name}")
    return folder / "*.tar"


class Soak:
    """Runs sluice on inputs in a work folder and keeps the figures of each run."""

    def __init__(self, args, work):
        self.args, self.work, self.runs = args, work, []

    def run(self, name, shards, images):
        """Score `shards`, which hold `images` records; returns the run."""
        print(f"{name}: {images} images", file=sys.stderr)
        output = self.work / "output"
        shutil.rmtree(output, ignore_errors=True)
        usage, summary = metered.run_sluice(self.args.sluice, self.args.pipeline, [shards], output)
        if summary["rows_by_status"] != {"ok": images}:
            sys.exit(f"{name}: {images} images went in, {summary['rows_by_status']} came out")
        run = {
            "input": name,
            "images": images,
            "peak_rss_mb": usage.peak_rss_mb,
            "images_per_second": summary["images_per_second"],
            "wall_seconds": usage.wall_seconds,
        }
        self.runs.append(run)
        return run

    def once_and_twice(self, name, once, twice, images):
        """Demands on memory, of an input and of twice that input."""
        first = self.run(name, once, images)["peak_rss_mb"]
        second = self.run(f"{name}, twice", twice, 2 * images)["peak_rss_mb"]
        highest, growth = max(first, second), second / first
        yield f"{name}: peak RSS under {RSS_LIMIT_MB} MB", f"{highest:.0f} MB", highest < RSS_LIMIT_MB
        yield f"{name}: no higher for twice the input", f"x {growth:.2f}", growth <= RSS_NOISE

    def many(self, small):
        once = write_shards(self.work / "many", small, self.args.images, FEW_SHARDS)
        twice = write_twice(self.work / "twice", once)
        yield from self.once_and_twice(f"{self.args.images} images", once, twice, self.args.images)

    def large(self, large):
        folder = self.work / "large"
        folder.mkdir()
        mean_bytes = sum(map(len, large)) / len(large)
        count = round(self.args.tar_gb * 1e9 / mean_bytes)
        once, twice = folder / "large.tar", folder / "twice.tar"
        write_tar(once, large, range(count))
        write_tar(twice, large, range(2 * count))
        gigabytes = once.stat().st_size / 1e9
        yield from self.once_and_twice(f"a {gigabytes:.1f} GB tar", once, twice, count)

    def shards(self, small):
        count = self.args.shard_images
        inputs = [
            (shards, write_shards(self.work / f"shards-{shards}", small, count, shards))
            for shards in (FEW_SHARDS, MANY_SHARDS)
        ]
        ratios = []
        for number in range(self.args.rounds):
            order = inputs if number % 2 == 0 else inputs[::-1]
            speeds = {
                shards: self.run(f"{shards} shards", uri, count)["images_per_second"] for shards, uri in order
            }
            ratios.append(speeds[MANY_SHARDS] / speeds[FEW_SHARDS])
        ratio = median(ratios)
        demand = f"images/s of {MANY_SHARDS} shards and of {FEW_SHARDS} within {SPEED_TOLERANCE:.0%}"
        yield demand, f"x {ratio:.2f}", abs(ratio - 1) <= SPEED_TOLERANCE


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sluice", required=True, help="the release binary")
    parser.add_argument("--pipeline", type=Path, default=ROOT / "pipelines" / "safety.toml")
    parser.add_argument(
        "--parts", nargs="+", choices=("many", "large", "shards"), default=["many", "large", "shards"]
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--tar-gb", type=float, default=2.0)
    parser.add_argument("--shard-images", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3, help="of the shards part")
    parser.add_argument("--distinct", type=int, default=400, help="number of different small photos")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "soak.json")
    args = parser.parse_args()

    cache = ROOT / ".deps" / "bench"
    small = [path.read_bytes() for path in dataset.make(cache, args.distinct, SMALL)]
    demands = []
    # not in /tmp, which may be in memory
    with tempfile.TemporaryDirectory(prefix="soak-", dir=cache) as work:
        soak = Soak(args, Path(work))
        if "many" in args.parts:
            demands += soak.many(small)
        if "large" in args.parts:
            paths = dataset.make(cache, LARGE_DISTINCT, LARGE)
            demands += soak.large([path.read_bytes() for path in paths])
        if "shards" in args.parts:
            demands += soak.shards(small)

    args.json.parent.mkdir(parents=True, exist_ok=True)
    met = {demand: {"figure": figure, "met": met} for demand, figure, met in demands}
    args.json.write_text(json.dumps({"runs": soak.runs, "demands": met}, indent=2) + "\n")
    rows = [
        [run["input"], run["images"], f"{run['peak_rss_mb']:.0f}", f"{run['images_per_second']:.1f}"]
        + [f"{run['wall_seconds']:.0f}"]
        for run in soak.runs
    ]
    print(metered.markdown(["input", "images", "peak RSS MB", "images/s", "wall s"], rows), end="\n\n")
    verdicts = [[demand, figure, "met" if met else "NOT MET"] for demand, figure, met in demands]
    print(metered.markdown(["demand", "figure", ""], verdicts))
    if not all(met for _, _, met in demands):
        sys.exit("a demand is not met")


if __name__ == "__main__":
    main()
