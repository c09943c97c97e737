#!/usr/bin/env python3
"""Make fixtures/codecs: small images in every format and mode, and what Pillow makes of them.

    python3 -m venv /tmp/codecs && /tmp/codecs/bin/pip install pillow==12.3.0 numpy==2.4.6
    /tmp/codecs/bin/python scripts/codec_fixtures.py

Writes the images, `expected/*.png` (RGB, lossless) and `cases.json`, which tells for each image the
`[preprocess]` section, the expected pixels and how far a pixel may be off. The pictures are
synthetic, so nobody else's licence applies to them.
"""

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

assert PIL.__version__ == "12.3.0", PIL.__version__
FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "codecs"
BACKGROUND = (200, 30, 99)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos3": Image.Resampling.LANCZOS,
}
# nearest and box are exact; the others round coefficients to 16 bits, Pillow to 22
cases = []
# expected pictures by their bytes: many cases share one
expected = {}
cuts = {}


def picture(width, height, seed, noise=25):
    """Smooth colours, hard edges and some noise: what codecs and filters disagree about."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / (3 + c) + y / (7 - c) + c) for c in range(3)]
    pixels = np.stack(waves, -1)
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (255, 0, 0)
    pixels[height // 2 :, : width // 5] = (0, 0, 0)
    pixels[: height // 5, width // 2 :] = (255, 255, 255)
    pixels += rng.normal(0, noise, pixels.shape) * (x > width // 2)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def alpha(width, height):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.clip((x * 9 + y * 5) % 300 - 20, 0, 255).astype(np.uint8))


def put(name, data):
    (FOLDER / name).write_bytes(data)
    return data


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def expect(group, name, input, image, **preprocess):
    """One case: `input` preprocessed gives `image`."""
    preprocess.setdefault("resize", {"width": image.width, "height": image.height})
    preprocess.setdefault("layout", "nhwc")
    data = saved(image, "PNG", optimize=True)
    path = expected.setdefault(data, f"expected/{group}-{name}.png")
    put(path, data)
    case = {"group": group, "name": name, "input": input, "expected": path}
    cases.append(case | {"preprocess": preprocess})


def opened(data):
    return Image.open(io.BytesIO(data))


def decodes(name, data, rgb=None):
    """`data` decodes to what Pillow's convert("RGB") gives, or to `rgb`."""
    put(name, data)
    expect("decode", name, name, rgb or opened(data).convert("RGB"))


def composites(name, data=None):
    data = data or (FOLDER / name).read_bytes()
    put(name, data)
    image = opened(data).convert("RGBA")
    under = Image.new("RGBA", image.size, BACKGROUND + (255,))
    over = Image.alpha_composite(under, image).convert("RGB")
    expect("background", name, name, over, background=list(BACKGROUND))


def png(width, height, color_type, depth, rows, interlace=False, extra=b""):
    """A PNG written by hand; `rows` is an array of samples, height × width × channels."""

    def chunk(kind, payload):
        crc = zlib.crc32(kind + payload)
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", crc)

    def packed(part):
        lines = []
        for line in part:
            if depth == 16:
                body = line.astype(">u2").tobytes()
            elif depth == 8:
                body = line.astype(np.uint8).tobytes()
            else:
                bits = "".join(format(int(v), f"0{depth}b") for v in line.ravel())
                bits += "0" * (-len(bits) % 8)
                body = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
            lines.append(b"\0" + body)
        return b"".join(lines)

    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        raw = b"".join(packed(rows[y::dy, x::dx]) for x, y, dx, dy in passes if rows[y::dy, x::dx].size)
    else:
        raw = packed(rows)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlace))
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_chunk(kind, payload):
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def tiff(samples, photometric, planar=False, extra_samples=None, big=False):
    """An uncompressed TIFF written by hand; `samples` is height × width × channels."""
    height, width, channels = samples.shape
    order = ">" if big else "<"
    bits = samples.dtype.itemsize * 8
    stored = samples.transpose(2, 0, 1) if planar else samples
    planes = [stored[i] for i in range(channels)] if planar else [stored]
    strips = [plane.astype(f"{order}u{bits // 8}").tobytes() for plane in planes]
    offsets, at = [], 8
    for strip in strips:
        offsets.append(at)
        at += len(strip)
    tags = {
        256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * channels), 259: (3, [1]),
        262: (3, [photometric]), 273: (4, offsets), 277: (3, [channels]), 278: (3, [height]),
        279: (4, [len(s) for s in strips]), 284: (3, [2 if planar else 1]),
    }
    if extra_samples is not None:
        tags[338] = (3, [extra_samples])
    ifd_at = at + at % 2
    tail_at = ifd_at + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(body) > 4:
            value = struct.pack(order + "I", tail_at + len(tail))
            tail += body
        else:
            value = body.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + value
    magic = b"MM\0*" if big else b"II*\0"
    data = magic + struct.pack(order + "I", ifd_at) + b"".join(strips)
    data = data.ljust(ifd_at, b"\0") + struct.pack(order + "H", len(tags)) + entries + b"\0\0\0\0" + tail
    return data


def segments(jpeg):
    """The marker segments up to the first scan, and the rest."""
    at, out = 2, []
    while jpeg[at + 1] != 0xDA:
        length = struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        out.append(jpeg[at : at + 2 + length])
        at += 2 + length
    return out, jpeg[at:]


def rebuilt(jpeg, change):
    parts, rest = segments(jpeg)
    return b"\xff\xd8" + b"".join(change(part) for part in parts) + rest


def jpegs():
    rgb = picture(27, 19, 1)
    for name, options in {
        "baseline": {"quality": 87},
        "444": {"quality": 90, "subsampling": 0},
        "422": {"quality": 60, "subsampling": 1},
        "progressive": {"quality": 80, "progressive": True},
        "restarts": {"quality": 70, "restart_marker_rows": 1},
        "rgb": {"quality": 85, "keep_rgb": True},
    }.items():
        decodes(f"{name}.jpg", saved(rgb, "JPEG", **options))
    decodes("gray.jpg", saved(rgb.convert("L"), "JPEG", quality=75))
    decodes("one_pixel.jpg", saved(rgb.crop((3, 3, 4, 4)), "JPEG"))
    k = np.asarray(rgb.convert("L"))
    cmyk = Image.fromarray(np.dstack([np.asarray(rgb), 255 - k // 2]), "CMYK")
    adobe = saved(cmyk, "JPEG", quality=85)
    decodes("cmyk_adobe.jpg", adobe)
    ycck = lambda part: part[:15] + b"\2" if part[1] == 0xEE else part
    decodes("ycck.jpg", rebuilt(adobe, ycck))
    decodes("cmyk_without_adobe.jpg", rebuilt(adobe, lambda part: b"" if part[1] == 0xEE else part))

    odd = lambda part: part[:15] + b"\7" if part[1] == 0xEE else part
    decodes("cmyk_transform_7.jpg", rebuilt(adobe, odd))

    # what libjpeg warns about and Pillow decodes
    base = (FOLDER / "baseline.jpg").read_bytes()
    version = lambda part: part[:9] + b"\7" + part[10:] if part[1] == 0xE0 else part
    decodes("jfif_version_7.jpg", rebuilt(base, version))
    decodes("bytes_between_segments.jpg", rebuilt(base, lambda part: part + b"xyz"))
    decodes("bytes_before_end.jpg", base[:-2] + b"\0\1\2\3" + base[-2:])
    decodes("bytes_after_end.jpg", base + b"garbage\xff\xd8")
    decodes("no_end_but_zeros.jpg", base[:-2] + b"\0" * 40)
    decodes("scan_data_missing.jpg", base[:-100] + base[-2:])
    unknown = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x07"
    decodes("adobe_transform_7.jpg", rebuilt(base, lambda part: unknown if part[1] == 0xE0 else part))

    # at which lengths Pillow takes a file that was cut
    for name in ["baseline", "progressive", "restarts", "gray", "cmyk_adobe"]:
        whole = (FOLDER / f"{name}.jpg").read_bytes()
        cuts[f"{name}.jpg"] = [length for length in range(1, len(whole) + 1) if loads(whole[:length])]
    bands = np.asarray(picture(24, 17, 8).convert("YCbCr"))
    tall = saved(Image.fromarray(bands, "YCbCr"), "JPEG", quality=50, optimize=True)
    put("small.jpg", tall)
    cuts["small.jpg"] = [length for length in range(1, len(tall) + 1) if loads(tall[:length])]


def loads(data):
    try:
        opened(data).load()
        return True
    except Exception:
        return False


def pngs():
    size = (27, 19)
    rgb = picture(*size, 2)
    rgba = rgb.copy()
    rgba.putalpha(alpha(*size))
    gray_alpha = rgba.convert("LA")
    decodes("rgb.png", saved(rgb, "PNG"))
    decodes("rgba.png", saved(rgba, "PNG"))
    decodes("gray.png", saved(rgb.convert("L"), "PNG"))
    decodes("gray_alpha.png", saved(gray_alpha, "PNG"))
    decodes("bilevel.png", saved(rgb.convert("1"), "PNG"))
    palette = rgb.quantize(200)
    decodes("palette.png", saved(palette, "PNG"))
    decodes("palette_4.png", saved(rgb.quantize(13), "PNG", bits=4))
    fading = bytes((i * 7) % 256 for i in range(200))
    decodes("palette_alpha.png", saved(palette, "PNG", transparency=fading))
    color = rgb.getpixel((10, 8))
    key = png_chunk(b"tRNS", struct.pack(">HHH", *color))
    decodes("color_key.png", png(*size, 2, 8, np.asarray(rgb), extra=key))
    gray = np.asarray(rgb.convert("L"))[..., None]
    for depth in (2, 4):
        decodes(f"gray_{depth}.png", png(*size, 0, depth, gray >> (8 - depth)))
    wide = np.random.default_rng(5).integers(0, 65536, (19, 27, 4))
    decodes("rgb_16.png", png(*size, 2, 16, wide[..., :3]))
    decodes("rgba_16.png", png(*size, 6, 16, wide))
    # Pillow clips 16-bit gray at 255; the high byte is what it does for every other mode
    high = Image.fromarray((wide[..., 0] >> 8).astype(np.uint8)).convert("RGB")
    decodes("gray_16.png", png(*size, 0, 16, wide[..., :1]), high)
    decodes("gray_alpha_16.png", png(*size, 4, 16, wide[..., :2]), high)
    decodes("interlaced.png", png(*size, 6, 8, np.asarray(rgba), interlace=True))
    decodes("interlaced_2.png", png(*size, 0, 2, gray >> 6, interlace=True))
    for name in ["rgba", "gray_alpha", "palette_alpha", "color_key", "rgba_16"]:
        composites(f"{name}.png")


def webps():
    rgb = picture(27, 19, 3)
    rgba = rgb.copy()
    rgba.putalpha(alpha(27, 19))
    decodes("lossy.webp", saved(rgb, "WEBP", quality=70))
    decodes("lossless.webp", saved(rgb, "WEBP", lossless=True))
    decodes("lossy_alpha.webp", saved(rgba, "WEBP", quality=70))
    decodes("lossless_alpha.webp", saved(rgba, "WEBP", lossless=True, exact=True))
    frames = [picture(27, 19, seed) for seed in (30, 31)]
    decodes("animated.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=60))
    composites("lossy_alpha.webp")
    composites("lossless_alpha.webp")


def gifs():
    rgb = picture(27, 19, 4)
    palette = rgb.quantize(64)
    decodes("palette.gif", saved(palette, "GIF", interlace=0))
    decodes("interlaced.gif", saved(palette, "GIF", interlace=1))
    decodes("gray.gif", saved(rgb.convert("L"), "GIF"))
    clear = saved(palette, "GIF", transparency=palette.getpixel((5, 5)), interlace=0)
    decodes("transparent.gif", clear)
    decodes("animated.gif", saved(rgb, "GIF", save_all=True, append_images=[picture(27, 19, 40)]))
    # the frame moved to (4, 3) of a canvas of 36 × 30, and out of a canvas of 20 × 15
    for name, data, canvas in [
        ("canvas_larger.gif", (FOLDER / "palette.gif").read_bytes(), (36, 30)),
        ("canvas_larger_transparent.gif", clear, (36, 30)),
        ("canvas_smaller.gif", (FOLDER / "palette.gif").read_bytes(), (20, 15)),
    ]:
        at = data.index(b",\0\0\0\0" + struct.pack("<HH", 27, 19))
        moved = data[:6] + struct.pack("<HH", *canvas) + data[10:at] + b"," + struct.pack("<HH", 4, 3) + data[at + 5 :]
        decodes(name, moved)
    composites("transparent.gif")
    composites("canvas_larger_transparent.gif")


def bmps():
    rgb = picture(27, 19, 6)
    rgba = rgb.copy()
    rgba.putalpha(alpha(27, 19))
    decodes("rgb.bmp", saved(rgb, "BMP"))
    decodes("rgba.bmp", saved(rgba, "BMP"))
    decodes("palette.bmp", saved(rgb.quantize(50), "BMP"))
    decodes("gray.bmp", saved(rgb.convert("L"), "BMP"))
    decodes("bilevel.bmp", saved(rgb.convert("1"), "BMP"))


def tiffs():
    rgb = picture(27, 19, 7)
    rgba = rgb.copy()
    rgba.putalpha(alpha(27, 19))
    for name, compression in {"raw": None, "lzw": "tiff_lzw", "deflate": "tiff_adobe_deflate", "packbits": "packbits"}.items():
        decodes(f"{name}.tif", saved(rgb, "TIFF", compression=compression))
    decodes("rgba.tif", saved(rgba, "TIFF", compression="tiff_lzw"))
    decodes("gray.tif", saved(rgb.convert("L"), "TIFF"))
    decodes("gray_alpha.tif", saved(rgba.convert("LA"), "TIFF"))
    decodes("bilevel.tif", saved(rgb.convert("1"), "TIFF"))
    decodes("fax.tif", saved(rgb.convert("1"), "TIFF", compression="group4"))
    cmyk = Image.fromarray(np.dstack([np.asarray(rgb), np.asarray(rgb.convert("L")) // 2]), "CMYK")
    decodes("cmyk.tif", saved(cmyk, "TIFF", compression="tiff_lzw"))
    wide = np.random.default_rng(9).integers(0, 65536, (19, 27, 4)).astype(np.uint16)
    decodes("rgb_16.tif", tiff(wide[..., :3], 2))
    decodes("rgb_16_big_endian.tif", tiff(wide[..., :3], 2, big=True))
    high = Image.fromarray((wide[..., 0] >> 8).astype(np.uint8)).convert("RGB")
    decodes("gray_16.tif", tiff(wide[..., :1], 1), high)
    decodes("planar.tif", tiff(np.asarray(rgb), 2, planar=True))
    gray = np.asarray(rgb.convert("L"))[..., None]
    decodes("white_is_zero.tif", tiff(gray, 0))
    composites("rgba.tif")
    composites("gray_alpha.tif")


def orientations():
    rgb = picture(33, 21, 10)
    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        name = f"orientation_{value}.jpg"
        data = put(name, saved(rgb, "JPEG", quality=90, exif=exif))
        upright = ImageOps.exif_transpose(opened(data)).convert("RGB")
        expect("orientation", f"{value}-decoded", name, upright)
        for filter, method in FILTERS.items():
            resized = upright.resize((11, 15), method)
            expect("orientation", f"{value}-{filter}", name, resized, resize=resize(11, 15, filter=filter))
    expect("orientation", "ignored", name, opened(data).convert("RGB"), orientation="ignore")
    covered = cover(upright, 24, 16, "bicubic")
    expect("orientation", "8-cover", name, covered, resize=resize(24, 16, "cover", "bicubic"))

    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for name, data in {
        "exif.png": saved(rgb, "PNG", exif=exif),
        "exif.webp": saved(rgb, "WEBP", lossless=True, exif=exif),
        "orientation.tif": saved(rgb, "TIFF", tiffinfo={274: 6}, compression="tiff_lzw"),
        "xmp.jpg": saved(rgb, "JPEG", quality=90, xmp=xmp),
    }.items():
        put(name, data)
        expect("orientation", name, name, ImageOps.exif_transpose(opened(data)).convert("RGB"))


def resize(width, height, fit="stretch", filter="bilinear"):
    return {"width": width, "height": height, "fit": fit, "filter": filter}


def cover(image, width, height, filter):
    """torchvision: Resize so that the target is covered, CenterCrop."""
    if width * image.height >= height * image.width:
        size = (width, max(height, int(width * image.height / image.width)))
    else:
        size = (max(width, int(height * image.width / image.height)), height)
    return center_crop(image.resize(size, FILTERS[filter]), width, height)


def center_crop(image, width, height):
    left = int(round((image.width - width) / 2.0))
    top = int(round((image.height - height) / 2.0))
    return image.crop((left, top, left + width, top + height))


def resizes():
    rgb = picture(67, 49, 11, noise=60)
    put("large.png", saved(rgb, "PNG", optimize=True))
    for filter, method in FILTERS.items():
        for width, height in [(22, 22), (33, 42), (67, 14), (14, 49), (90, 28)]:
            name = f"{filter}-{width}x{height}"
            expect("resize", name, "large.png", rgb.resize((width, height), method),
                   resize=resize(width, height, filter=filter))
        expect("fit", f"cover-{filter}", "large.png", cover(rgb, 23, 23, filter),
               resize=resize(23, 23, "cover", filter))
        padded = ImageOps.pad(rgb, (26, 26), method, color=BACKGROUND)
        expect("fit", f"contain-{filter}", "large.png", padded,
               resize=resize(26, 26, "contain", filter), background=list(BACKGROUND))
        cropped = center_crop(rgb.resize((33, 30), method), 20, 23)
        expect("fit", f"crop-{filter}", "large.png", cropped,
               resize=resize(33, 30, filter=filter), crop={"width": 20, "height": 23})
    expect("fit", "contain-black", "large.png", ImageOps.pad(rgb, (16, 40), FILTERS["bilinear"]),
           resize=resize(16, 40, "contain"))
    wide = center_crop(cover(rgb, 50, 18, "bilinear"), 33, 11)
    expect("fit", "cover-wide-crop", "large.png", wide,
           resize=resize(50, 18, "cover"), crop={"width": 33, "height": 11})


shutil.rmtree(FOLDER, ignore_errors=True)
(FOLDER / "expected").mkdir(parents=True)
for make in (jpegs, pngs, webps, gifs, bmps, tiffs, orientations, resizes):
    make()
lines = ",\n".join("  " + json.dumps(case) for case in cases)
whole = ",\n".join(f"  {json.dumps(name)}: {json.dumps(lengths)}" for name, lengths in cuts.items())
(FOLDER / "cases.json").write_text(f'{{"cases": [\n{lines}\n],\n"lengths_that_load": {{\n{whole}\n}}}}\n')
print(len(cases), "cases,", sum(f.stat().st_size for f in FOLDER.rglob("*.*")) // 1024, "KiB")
