#!/usr/bin/env python3
"""Make photos for measurements: distinct JPEGs cut from the bundled photos.

    scripts/bench/dataset.py FOLDER [--count 400] [--size 1280x960] [--quality 87] [--noise 1.3]

An image consists of four random pieces of random photos, most of them enlarged, with a little noise in
brightness, as from a camera; more --noise gives larger files. With the defaults an image has about
270 kB, like a photo of that size. Image N is the same in every folder made with the same options.
Existing images are kept.
"""

import argparse
import io
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = Path(__file__).parents[2] / "fixtures" / "photos"
SUFFIXES = {".jpg", ".png", ".webp"}


@dataclass(frozen=True)
class Kind:
    """Size, quality and noise of the images of a data set."""

    width: int = 1280
    height: int = 960
    quality: int = 87
    noise: float = 1.3  # standard deviation, of 256 steps of brightness

    def __str__(self):
        return f"{self.width}x{self.height}-q{self.quality}-noise{self.noise:g}"


PHOTO = Kind()


@cache
def photos():
    paths = sorted(path for path in PHOTOS.iterdir() if path.suffix in SUFFIXES)
    return [Image.open(path).convert("RGB") for path in paths]


def piece(random, width, height):
    """A random piece of a random photo, a fifth of its width or more, scaled to width x height."""
    photo = photos()[random.integers(len(photos()))]
    largest = min(photo.width / width, photo.height / height)
    scale = largest * random.uniform(0.2, 1.0)
    box_width, box_height = scale * width, scale * height
    left, top = random.uniform(0, photo.width - box_width), random.uniform(0, photo.height - box_height)
    box = (left, top, left + box_width, top + box_height)
    return photo.resize((width, height), Image.Resampling.BICUBIC, box=box)


def jpeg(kind, index):
    """Image `index` of that kind, as JPEG bytes."""
    random = np.random.default_rng(index)
    canvas = Image.new("RGB", (kind.width, kind.height))
    middle = (kind.width // 2, kind.height // 2)
    for left, right in ((0, middle[0]), (middle[0], kind.width)):
        for top, bottom in ((0, middle[1]), (middle[1], kind.height)):
            canvas.paste(piece(random, right - left, bottom - top), (left, top))
    noise = random.standard_normal((kind.height, kind.width, 1), np.float32) * np.float32(kind.noise)
    pixels = (np.asarray(canvas) + noise).clip(0, 255).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=kind.quality)
    return encoded.getvalue()


def write_jpeg(folder, kind, index):
    path = folder / f"{index:06}.jpg"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(jpeg(kind, index))
        part.rename(path)
    return path


def make(folder, count, kind=PHOTO):
    """Folder `folder`/KIND-COUNT with `count` images of that kind; returns their paths."""
    folder = Path(folder) / f"{kind}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        work = [pool.submit(write_jpeg, folder, kind, index) for index in range(count)]
        return [job.result() for job in work]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", default=f"{PHOTO.width}x{PHOTO.height}", metavar="WIDTHxHEIGHT")
    parser.add_argument("--quality", type=int, default=PHOTO.quality)
    parser.add_argument("--noise", type=float, default=PHOTO.noise)
    args = parser.parse_args()

    width, height = map(int, args.size.split("x"))
    paths = make(args.folder, args.count, Kind(width, height, args.quality, args.noise))
    mean_bytes = sum(path.stat().st_size for path in paths) / len(paths)
    print(f"{len(paths)} images of {args.size}, {mean_bytes / 1000:.0f} kB each, in {paths[0].parent}")


if __name__ == "__main__":
    main()
