#!/usr/bin/env python3
"""Images/s of one thread that decodes and resizes with Pillow, as one JSON object.

    scripts/bench/pillow_decode.py --pipeline FILE --images DIR [--seconds 4]

| key          | one image is                                                  |
| ------------ | ------------------------------------------------------------- |
| decode       | decoded to RGB                                                |
| resize       | and resized as the pipeline says (no crop, no normalisation)  |
| resize_draft | the same with Pillow's scaled JPEG decode, Image.draft        |
| resize_384   | resized to 384x384 by the same filter instead                 |
"""

import argparse
import io
import itertools
import json
import sys
import time
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference import FILTERS, read_pipeline  # noqa: E402 (found through the line above)


def rate(step, encoded_images, seconds):
    """Images/s of `step` over the images in turn, for at least `seconds`."""
    started = time.perf_counter()
    for done, encoded in enumerate(itertools.cycle(encoded_images), start=1):
        step(encoded)
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return done / elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    args = parser.parse_args()

    resize = read_pipeline(args.pipeline)["preprocess"]["resize"]
    if resize.get("fit", "stretch") != "stretch":
        sys.exit("pillow_decode: measures pipelines that stretch")
    size, resample = (resize["width"], resize["height"]), FILTERS[resize.get("filter", "bilinear")]
    encoded_images = [path.read_bytes() for path in sorted(args.images.iterdir())]

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
    print(json.dumps({name: rate(step, encoded_images, args.seconds) for name, step in steps.items()}))


if __name__ == "__main__":
    main()
