#!/usr/bin/env python3
"""Pack image files into shards, in each format that sluice reads.

    scripts/shards.py --format webdataset --out shards --per-shard 1000 photos/

| --format    | shards                   | a record                                      |
| ----------- | ------------------------ | --------------------------------------------- |
| webdataset  | `shard-00000.tar`        | members `STEM.EXT`, optionally `STEM.json`     |
| tfrecord    | `shard-00000.tfrecord`   | tf.Example: `image/encoded`, `image/filename`  |
| parquet     | `shard-00000.parquet`    | `id` and `image`: struct of `bytes`, `path`    |
| files       | `shard-00000/`           | the file itself                               |

- The id of a record is the stem of its file, which must be unique.
- Records are sorted by path within each argument, so the same files give the same bytes.
- --gzip and --zstd compress whole tar and TFRecord files, and Parquet's pages.
- Parquet and --zstd need pyarrow; all other formats need only Python.
"""

import argparse
import gzip
import io
import json
import shutil
import struct
import sys
import tarfile
from pathlib import Path

EXTENSIONS = {".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ROW_GROUP_ROWS = 100


def find_images(arguments):
    """The image files among the arguments and in folders among them."""
    for argument in arguments:
        if argument.is_dir():
            found = sorted(path for path in argument.rglob("*") if path.suffix.lower() in EXTENSIONS)
            yield from (path for path in found if path.is_file())
        elif argument.is_file():
            yield argument
        else:
            sys.exit(f"shards: {argument} does not exist")


def check_ids(images, format):
    seen = {}
    for path in images:
        if path.stem in seen:
            sys.exit(f"shards: {seen[path.stem]} and {path} have the same id")
        if format == "webdataset" and "." in path.stem:
            sys.exit(f"shards: {path}: the key of a WebDataset sample ends at the first dot, so the stem may not have one")
        seen[path.stem] = path


def compressed(data, codec):
    """(bytes, suffix of the file's name)"""
    if codec == "gzip":
        # the header has no name and no time
        return gzip.compress(data, compresslevel=6, mtime=0), ".gz"
    if codec == "zstd":
        import pyarrow

        return pyarrow.compress(data, codec="zstd", asbytes=True), ".zst"
    return data, ""


# --- WebDataset ------------------------------------------------------------------------------


def webdataset(images, metadata):
    """A tar with one member per image, named after its file, and with `metadata` a JSON member beside each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in images:
            add_member(tar, path.name, path.read_bytes())
            if metadata:
                add_member(tar, f"{path.stem}.json", describe(path))
    return buffer.getvalue()


def add_member(tar, name, data):
    member = tarfile.TarInfo(name)  # by default the owner is root and the time 0
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def describe(path):
    return json.dumps({"file": path.name, "bytes": path.stat().st_size}, sort_keys=True).encode()


# --- TFRecord --------------------------------------------------------------------------------
#
# A record is its length (u64), the masked CRC of the length, the data, the masked CRC of the data,
# little-endian. The data is a tf.Example, in Protocol Buffers:
#   Example { Features features = 1 }
#   Features { map<string, Feature> feature = 1 }, each entry { string key = 1; Feature value = 2 }
#   Feature { BytesList bytes_list = 1 }, BytesList { repeated bytes value = 1 }


def crc32c_tables():
    """Slicing by 8 for the Castagnoli polynomial: table k advances a byte by k more bytes."""
    first = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        first.append(value)
    tables = [first]
    for _ in range(7):
        tables.append([first[value & 0xFF] ^ value >> 8 for value in tables[-1]])
    return tables


CRC32C_TABLES = crc32c_tables()


def crc32c(data):
    t0, t1, t2, t3, t4, t5, t6, t7 = CRC32C_TABLES
    crc = 0xFFFFFFFF
    whole = len(data) // 8 * 8
    for low, high in struct.iter_unpack("<II", data[:whole]):
        low ^= crc
        crc = (
            t7[low & 0xFF] ^ t6[low >> 8 & 0xFF] ^ t5[low >> 16 & 0xFF] ^ t4[low >> 24]
            ^ t3[high & 0xFF] ^ t2[high >> 8 & 0xFF] ^ t1[high >> 16 & 0xFF] ^ t0[high >> 24]
        )  # fmt: skip
    for byte in data[whole:]:
        crc = t0[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, payload):
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def example(features):
    entries = (
        field(1, field(1, key.encode()) + field(2, field(1, field(1, value))))
        for key, value in sorted(features.items())
    )
    return field(1, b"".join(entries))


def tfrecord(images):
    out = bytearray()
    for path in images:
        data = example({"image/encoded": path.read_bytes(), "image/filename": path.name.encode()})
        length = struct.pack("<Q", len(data))
        out += length + masked_crc32c(length) + data + masked_crc32c(data)
    return bytes(out)


# --- Parquet ---------------------------------------------------------------------------------


def parquet(images, plain_binary, codec):
    """`id` and `image`: the struct that Hugging Face's datasets use, or plain bytes."""
    import pyarrow
    import pyarrow.parquet

    encoded = [path.read_bytes() for path in images]
    if plain_binary:
        column = pyarrow.array(encoded, pyarrow.binary())
    else:
        column = pyarrow.array(
            [{"bytes": data, "path": path.name} for data, path in zip(encoded, images)],
            pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
        )
    table = pyarrow.table({"id": [path.stem for path in images], "image": column})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        table, buffer, compression=codec or "none", row_group_size=ROW_GROUP_ROWS, use_dictionary=False
    )
    return buffer.getvalue()


# --- Command line ----------------------------------------------------------------------------


def write_shard(options, number, images):
    """Writes one shard and returns its path."""
    base = options.out / f"{options.prefix}-{number:05}"
    if options.format == "files":
        base.mkdir(parents=True, exist_ok=True)
        for path in images:
            shutil.copyfile(path, base / path.name)
        return base
    if options.format == "webdataset":
        data, end = compressed(webdataset(images, options.json), options.codec)
        end = f".tar{end}"
    elif options.format == "tfrecord":
        data, end = compressed(tfrecord(images), options.codec)
        end = f".tfrecord{end}"
    else:
        data, end = parquet(images, options.plain_binary, options.codec), ".parquet"
    shard = base.with_name(base.name + end)
    shard.write_bytes(data)
    return shard


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", required=True, choices=["webdataset", "tfrecord", "parquet", "files"])
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--per-shard", type=int, default=1000, metavar="N", help="records in a shard (1000)")
    parser.add_argument("--prefix", default="shard", help="prefix of the names of shards (shard)")
    parser.add_argument("--json", action="store_true", help="webdataset: a .json member beside each image")
    parser.add_argument("--plain-binary", action="store_true", help="parquet: `image` is bytes, not a struct")
    codec = parser.add_mutually_exclusive_group()
    codec.add_argument("--gzip", dest="codec", action="store_const", const="gzip")
    codec.add_argument("--zstd", dest="codec", action="store_const", const="zstd")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE_OR_DIR")
    options = parser.parse_args()

    if options.per_shard < 1:
        parser.error("--per-shard must be at least 1")
    if options.json and options.format != "webdataset":
        parser.error("--json is for webdataset")
    if options.plain_binary and options.format != "parquet":
        parser.error("--plain-binary is for parquet")
    if options.codec and options.format == "files":
        parser.error("files are copied as they are: no --gzip or --zstd")
    return options


def main():
    options = parse_arguments()
    images = list(find_images(options.images))
    if not images:
        sys.exit("shards: no images among the arguments")
    check_ids(images, options.format)
    options.out.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(images), options.per_shard)):
        chosen = images[start : start + options.per_shard]
        print(f"{write_shard(options, number, chosen)}: {len(chosen)} records")


if __name__ == "__main__":
    main()
