"""Makes inputs: shards of every format with images of every kind, and many small shards."""

import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import shards  # noqa: E402 (found through the line above)

CODECS = ROOT / "fixtures" / "codecs"

TINY_PIPELINE = """\
name = "tiny"
[input]
uri = "in"
files_per_shard = 40
[preprocess]
resize = { width = 8, height = 8 }
scale = 0.00392156862745098
layout = "nhwc"
[model]
path = "tiny.onnx"
labels = ["north", "east", "south", "west"]
[engine]
batch_size = 4
threads = 1
[output]
uri = "out"
max_error_rate = 1.0
checkpoint_seconds = 0.3
"""


def write_pipeline(folder):
    """A pipeline file for the tiny model, beside a copy of the model; returns its path."""
    shutil.copyfile(ROOT / "fixtures" / "tiny.onnx", folder / "tiny.onnx")
    pipeline = folder / "tiny.toml"
    pipeline.write_text(TINY_PIPELINE)
    return pipeline


def write_of_all_kinds(folder, random):
    """Shards of every format with the images of fixtures/codecs, some of which are cut; returns their folder.

    One tar is empty.
    """
    images = folder / "images"
    images.mkdir()
    kinds = [path for path in sorted(CODECS.iterdir()) if path.suffix in shards.EXTENSIONS]
    random.shuffle(kinds)
    copies = []
    for number, path in enumerate(kinds):
        # files of several formats have the same stem
        copy = images / f"{number:03}-{path.stem.replace('.', '-')}{path.suffix}"
        data = path.read_bytes()
        if random.random() < 0.1:
            data = data[: random.randrange(len(data))]
        copy.write_bytes(data)
        copies.append(copy)

    out = folder / "in"
    for name, write in (
        ("tar", lambda path, some: path.with_suffix(".tar").write_bytes(shards.webdataset(some, False))),
        ("tfrecord", lambda path, some: path.with_suffix(".tfrecord").write_bytes(shards.tfrecord(some))),
        ("parquet", lambda path, some: path.with_suffix(".parquet").write_bytes(shards.parquet(some, False, None))),
    ):
        (out / name).mkdir(parents=True)
        start, number = 0, 0
        while start < len(copies):
            some = copies[start : start + random.randint(1, 60)]
            write(out / name / f"{number:03}", some)
            start, number = start + len(some), number + 1
    (out / "tar" / "empty.tar").write_bytes(shards.webdataset([], False))
    images.rename(out / "loose")
    return out


def noise(random, width, height, format):
    """An encoded image of random pixels."""
    encoded = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.randbytes(3 * width * height)).save(encoded, format)
    return encoded.getvalue()


def tar(members):
    """A tar without the padding to whole blocks of 10 kB."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in members:
            shards.add_member(file, name, data)
        end = file.offset + 2 * tarfile.BLOCKSIZE
    return buffer.getvalue()[:end]


def write_tars(folder, sizes, random, size=(160, 120), distinct=40):
    """A tar for each of `sizes`, with that many images, some of which are damaged; returns the folder."""
    folder.mkdir()
    images = [noise(random, *size, "JPEG") for _ in range(distinct)]
    images += [image[: len(image) // 3] for image in images[: distinct // 10]]
    number = 0
    for index, records in enumerate(sizes):
        members = [(f"{number + record:07}.jpg", random.choice(images)) for record in range(records)]
        number += records
        (folder / f"{index:05}.tar").write_bytes(tar(members))
    return folder


def write_tiny_tars(folder, count, random, distinct=100):
    """`count` tars with one small image each, which are links to a few files; returns the folder."""
    folder.mkdir()
    for index in range(count):
        path = folder / f"{index:06}.tar"
        if index < distinct:
            path.write_bytes(tar([(f"{index:03}.png", noise(random, 16, 12, "PNG"))]))
        else:
            os.link(folder / f"{index % distinct:06}.tar", path)
    return folder
