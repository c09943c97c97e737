#!/usr/bin/env python3
"""Score images with Pillow and ONNX Runtime, according to a pipeline file.

    scripts/reference.py PIPELINE IMAGE... --json OUT [--set section.key=value]...

The reference for sluice's scores, in the plain Python that a user would write.

- Reads [preprocess], [model] and engine.batch_size of the pipeline file; ignores the other keys.
- Resizing is Pillow's: `stretch` is Image.resize, `cover` is torchvision's Resize and CenterCrop,
  `contain` is ImageOps.pad.
- preprocess.jpeg_round_trip saves the cropped image as a JPEG and reads it back before it becomes a
  tensor, as open-nsfw's package does.
- Two deliberate differences from Pillow: a 16-bit gray sample becomes its high byte, where convert()
  clips at 255; and `contain` never shrinks a side to zero, for which ImageOps.pad fails.
- Every run of the model has exactly batch_size rows; the last batch is padded with zeros.
"""

import argparse
import io
import json
import os
import sys
import tomllib
from pathlib import Path

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded
import onnxruntime  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos3": Image.Resampling.LANCZOS,
}
BLACK = (0, 0, 0)


def read_pipeline(path, overrides=()):
    """The pipeline file as a dictionary, with overrides `section.key=value`."""
    pipeline = tomllib.loads(Path(path).read_text())
    for override in overrides:
        name, _, text = override.partition("=")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *sections, key = name.split(".")
        table = pipeline
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = value
    return pipeline


def to_rgb(image, background=None):
    """8-bit RGB; alpha is dropped, or composited over `background`."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if background is None or not image.has_transparency_data:
        return image.convert("RGB")
    below = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")


def centre_crop(image, width, height):
    left = int(round((image.width - width) / 2.0))
    top = int(round((image.height - height) / 2.0))
    return image.crop((left, top, left + width, top + height))


def cover(image, width, height, resample):
    """Resized to the smallest size that covers width x height (the longer side rounded down), then cropped."""
    if width * image.height >= height * image.width:
        size = (width, max(height, int(width * image.height / image.width)))
    else:
        size = (max(width, int(height * image.width / image.height)), height)
    return centre_crop(image.resize(size, resample), width, height)


def contain(image, width, height, resample, background):
    """Resized to the largest size that fits into width x height, centred on `background`."""
    if image.width * height > image.height * width:
        size = (width, max(1, round(image.height / image.width * width)))
    else:
        size = (max(1, round(image.width / image.height * height)), height)
    padded = Image.new("RGB", (width, height), background)
    corner = (round((width - size[0]) * 0.5), round((height - size[1]) * 0.5))
    padded.paste(image.resize(size, resample), corner)
    return padded


def through_jpeg(image, quality):
    """The image after it was saved as a JPEG of this quality and read back."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return Image.open(encoded).convert("RGB")


class Reference:
    """A pipeline file's preprocessing and model.

    `overrides` are `section.key=value`, as for `sluice run --set`.
    """

    def __init__(self, pipeline, overrides=(), session_options=None):
        settings = read_pipeline(pipeline, overrides)
        self.folder = Path(pipeline).parent
        self.preprocess = settings["preprocess"]
        self.model = settings["model"]
        self.batch_size = settings.get("engine", {}).get("batch_size", 32)
        self._session_options = session_options
        self._session = None

    @property
    def session(self):
        """ONNX Runtime with the model, loaded at the first use."""
        if self._session is None:
            self._session = onnxruntime.InferenceSession(
                self.folder / self.model["path"], self._session_options, providers=["CPUExecutionProvider"]
            )
        return self._session

    @property
    def labels(self):
        """Class names, or None if the pipeline has none."""
        labels = self.model.get("labels")
        if isinstance(labels, str):
            return (self.folder / labels).read_text().splitlines()
        return labels

    def pixels(self, encoded):
        """Encoded bytes to the resized and cropped 8-bit RGB image."""
        options = self.preprocess
        resize, background = options["resize"], options.get("background")
        image = Image.open(io.BytesIO(encoded))
        if options.get("orientation", "apply") == "apply":
            image = ImageOps.exif_transpose(image)
        image = to_rgb(image, background)

        width, height = resize["width"], resize["height"]
        resample = FILTERS[resize.get("filter", "bilinear")]
        match resize.get("fit", "stretch"):
            case "stretch":
                image = image.resize((width, height), resample)
            case "cover":
                image = cover(image, width, height, resample)
            case "contain":
                image = contain(image, width, height, resample, tuple(background or BLACK))
        if "crop" in options:
            image = centre_crop(image, options["crop"]["width"], options["crop"]["height"])
        if "jpeg_round_trip" in options:
            image = through_jpeg(image, options["jpeg_round_trip"])
        return image

    def normalise(self, image):
        """8-bit RGB image to one row of the model's input, float32."""
        options = self.preprocess
        values = np.asarray(image, np.float32)
        if options.get("color", "rgb") == "bgr":
            values = values[:, :, ::-1]
        scale = np.float32(options.get("scale", 1.0))
        mean = np.asarray(options.get("mean", [0.0] * 3), np.float32)
        std = np.asarray(options.get("std", [1.0] * 3), np.float32)
        values = (values * scale - mean) / std
        if options.get("layout", "nchw") == "nchw":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values)

    def tensor(self, encoded):
        """Encoded bytes to one row of the model's input, float32."""
        return self.normalise(self.pixels(encoded))

    def infer(self, rows):
        """Scores of at most batch_size input rows."""
        batch = np.zeros((self.batch_size, *rows[0].shape), np.float32)
        for slot, row in zip(batch, rows, strict=False):
            slot[:] = row
        scores = self.session.run(None, {self.session.get_inputs()[0].name: batch})[0]
        return scores.reshape(self.batch_size, -1)[: len(rows)]

    def score(self, encoded_images):
        """Scores of images, one row each."""
        scores, rows = [], []
        for encoded in encoded_images:
            rows.append(self.tensor(encoded))
            if len(rows) == self.batch_size:
                scores.append(self.infer(rows))
                rows = []
        if rows:
            scores.append(self.infer(rows))
        return np.concatenate(scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    args = parser.parse_args()

    reference = Reference(args.pipeline, args.set)
    scores = reference.score(path.read_bytes() for path in args.images)
    labels = reference.labels
    results = []
    for path, row in zip(args.images, scores, strict=True):
        top = int(row.argmax())
        label = labels[top] if labels else None
        results.append({"image": str(path), "top1_index": top, "top1_label": label, "scores": row.tolist()})
        print(f"{path}  {label or top}  {row[top]:.4f}", file=sys.stderr)
    args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
