#!/usr/bin/env python3
"""Images/s of one thread that decodes and resizes with Pillow, as one JSON object.

    scripts/bench/pillow_decode.py --pipeline FILE --images DIR [--figures resize] [--seconds 4]

| key          | one image is                                                  |
| ------------ | ------------------------------------------------------------- |
| decode       | decoded to RGB                                                |
| resize       | and resized as the pipeline says (no crop, no normalisation)  |
| resize_draft | the same with Pillow's scaled JPEG decode, Image.draft        |
| resize_384   | resized to 384x384 with the same filter instead               |
"""

import argparse
import io
import json
import sys
import time
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference import FILTERS, read_pipeline  # noqa: E402 (found through the line above)


# Number of images, as in src/benches/stages.rs.
SAMPLE = 128


def rate(step, encoded_images, seconds):
    """Images/s of `step` over all images, repeated for at least `seconds` after a warm-up."""
    for encoded in encoded_images:
        step(encoded)
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        for encoded in encoded_images:
            step(encoded)
        done += len(encoded_images)
    return done / elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--figures", nargs="+", help="keys of the table; all if left out")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    args = parser.parse_args()

    resize = read_pipeline(args.pipeline)["preprocess"]["resize"]
    if resize.get("fit", "stretch") != "stretch":
        sys.exit("pillow_decode: measures pipelines that stretch")
    size, resample = (resize["width"], resize["height"]), FILTERS[resize.get("filter", "bilinear")]
    encoded_images = [path.read_bytes() for path in sorted(args.images.iterdir())[:SAMPLE]]

    def decode(encoded, draft=None):
        image = Image.open(io.BytesIO(encoded))
        if draft:
            image.draft("RGB", draft)
        return image.convert("RGB")

    steps = {
        "decode": decode,
        "resize": lambda encoded: decode(encoded).resize(size, resample),
        "resize_draft": lambda encoded: decode(encoded, draft=size).resize(size, resample),
        "resize_384": lambda encoded: decode(encoded).resize((384, 384), resample),
    }
    figures = args.figures or steps
    print(json.dumps({name: rate(steps[name], encoded_images, args.seconds) for name in figures}))


if __name__ == "__main__":
    main()
