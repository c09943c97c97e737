#!/usr/bin/env python3
"""Write fixtures/codecs: small images in every format and mode, with the pixels that Pillow decodes.

    python3 -m venv /tmp/codecs && /tmp/codecs/bin/pip install pillow==12.3.0 numpy==2.4.6
    /tmp/codecs/bin/python scripts/codec_fixtures.py

Writes the images, `expected/*.png` (RGB, lossless) and `cases.json`: the `[preprocess]` section and the
expected pixels of each image, and the images that are refused. The pictures are synthetic, so no other
licence applies to them.
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

from codec_containers import (XMP_SEGMENT, arithmetic_jpeg, exif, lossless_jpeg, png_chunk, png_image, png_of,
                              raw_profile, segment, webp_canvas, webp_frame, webp_image, webp_of, with_frame,
                              with_segments, xmp)
from codec_writers import REVERSED, bmp, bmp_rows, gif, gif_frame, graphic_control, lzw, tiff, tiff_of

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
cases = []
# expected pictures by their bytes: several cases may share one
expected = {}
cuts = {}
# images that are refused, and words of the reason
refused = {}


def picture(width, height, seed, noise=25):
    """Smooth colours, hard edges and some noise, on which codecs and filters differ."""
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
    """Add a case: preprocessing `input` gives `image`."""
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
    """Add a case: `data` decodes to the pixels of Pillow's convert("RGB"), or to `rgb`."""
    put(name, data)
    expect("decode", name, name, rgb or opened(data).convert("RGB"))


def refuses(name, data, reason):
    put(name, data)
    refused[name] = reason


def composites(name, data=None):
    data = data or (FOLDER / name).read_bytes()
    put(name, data)
    image = opened(data).convert("RGBA")
    under = Image.new("RGBA", image.size, BACKGROUND + (255,))
    over = Image.alpha_composite(under, image).convert("RGB")
    expect("background", name, name, over, background=list(BACKGROUND))


def png(width, height, color_type, depth, rows, interlace=False, extra=b""):
    """A PNG of `rows`, an array of samples: height × width × channels."""

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

    # damage at which libjpeg warns, and which Pillow decodes
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

    # lengths with all pixels: those at which Pillow accepts the truncated file, and that without the end marker
    lengths = lambda whole: [n for n in range(1, len(whole) + 1) if n >= len(whole) - 2 or loads(whole[:n])]
    for name in ["baseline", "progressive", "restarts", "gray", "cmyk_adobe"]:
        whole = (FOLDER / f"{name}.jpg").read_bytes()
        cuts[f"{name}.jpg"] = lengths(whole)
    bands = np.asarray(picture(24, 17, 8).convert("YCbCr"))
    tall = saved(Image.fromarray(bands, "YCbCr"), "JPEG", quality=50, optimize=True)
    gray = Image.open(FOLDER / "gray.jpg")
    small = {"small": tall}
    for name, restarts in [("rows", {"restart_marker_rows": 1}), ("blocks", {"restart_marker_blocks": 1})]:
        made = (saved(gray, "JPEG", quality=quality, **restarts) for quality in range(30, 100))
        small[f"gray_restarts_{name}"] = next(whole for whole in made if loads(whole[:-2]))
    for name, whole in small.items():
        put(f"{name}.jpg", whole)
        cuts[f"{name}.jpg"] = lengths(whole)


def loads(data):
    try:
        opened(data).load()
        return True
    except Exception:
        return False


def jpeg_variants():
    """Sampling factors, colour models, codings and markers that Pillow does not write."""
    rgb = picture(96, 64, 62)
    small = picture(27, 19, 63)
    sampled = {0: 96, 1: 48, 2: 24}
    jpegs_by_units = {units: saved(rgb, "JPEG", quality=60, subsampling=sub) for sub, units in sampled.items()}
    # the same data with other sampling factors of as many blocks: the colours are wrong, but equal in all decoders
    for name, units, per_row, factors in [
        ("411", 24, 6, [(4, 1), (1, 1), (1, 1)]),
        ("410", 24, 4, [(1, 4), (1, 1), (1, 1)]),
        ("440", 48, 8, [(1, 2), (1, 1), (1, 1)]),
        ("mixed", 24, 6, [(2, 1), (1, 2), (1, 2)]),
        ("chroma_finer", 48, 8, [(1, 1), (2, 1), (1, 1)]),
    ]:
        widest, highest = max(wide for wide, _ in factors), max(high for _, high in factors)
        size = (8 * widest * per_row - 3, 8 * highest * (units // per_row) - 5)
        decodes(f"{name}.jpg", with_frame(jpegs_by_units[units], size=size, factors=factors))
    gray = saved(small.convert("L"), "JPEG", quality=80)
    decodes("gray_22.jpg", with_frame(gray, factors=[(2, 2)]))
    decodes("progressive_gray.jpg", saved(small.convert("L"), "JPEG", progressive=True))
    decodes("progressive_cmyk.jpg", saved(small.convert("CMYK"), "JPEG", progressive=True))
    decodes("extended.jpg", with_frame(saved(small, "JPEG"), marker=0xC1))
    decodes("restarts_blocks.jpg", saved(small, "JPEG", restart_marker_blocks=1))
    decodes("fill_bytes.jpg", saved(small, "JPEG")[:2] + b"\xff\xff\xff" + saved(small, "JPEG")[2:])
    data = np.random.default_rng(64).integers(0, 256, 400).astype(np.uint8).tobytes()
    decodes("arithmetic.jpg", arithmetic_jpeg(27, 19, data))
    decodes("arithmetic_progressive.jpg", arithmetic_jpeg(27, 19, data[:60], progressive=True))
    decodes("lossless.jpg", lossless_jpeg(np.asarray(small.convert("L"))))
    refuses("thirds.jpg", with_frame(jpegs_by_units[24], factors=[(3, 1), (1, 1), (2, 1)]), "sampling")
    refuses("twelve_bits.jpg", with_frame(saved(small, "JPEG"), bits=12), "samples of 12 bits")
    whole = saved(small, "JPEG", progressive=True)
    last_scan = whole.rindex(b"\xff\xda")
    refuses("last_scan_missing.jpg", whole[:last_scan], "cut short")
    refuses("last_scan_zeros.jpg", whole[:last_scan + 20] + bytes(40), "cut short")
    refuses("no_image.jpg", b"\xff\xd8\xff\xd9", "there is no image")
    refuses("header_cut.jpg", whole[:30], "it ends within its header")
    refuses("jpeg_ls.jpg", with_frame(saved(small, "JPEG"), marker=0xF7), "this is a JPEG-LS")
    refuses("no_height.jpg", with_frame(saved(small, "JPEG"), size=(27, 0)), "Empty JPEG image")


def png_variants():
    """Palettes, transparency, interlacing, and damaged or missing data outside of the pixels."""
    size = (27, 19)
    rgb = picture(*size, 65)
    gray = np.asarray(rgb.convert("L"))[..., None]
    [header], pixels = png_image(saved(rgb, "PNG"))
    short = (b"IDAT", pixels[1][:-200])
    refuses("pixels_cut.png", png_of(header, short, (b"IEND", b"")), "compressed pixels are damaged or end early")
    refuses("depth_4_rgb.png", png(*size, 2, 4, np.asarray(rgb)), "colour type and a bit depth that PNG does not allow")
    decodes("interlaced_rgb.png", png(*size, 2, 8, np.asarray(rgb), interlace=True))
    decodes("interlaced_1.png", png(*size, 0, 1, gray >> 7, interlace=True))
    for depth, colors in {1: 2, 2: 4, 4: 13}.items():
        indexed = rgb.quantize(colors)
        palette = (b"PLTE", bytes(indexed.getpalette()[: 3 * colors]))
        rows = np.asarray(indexed)[..., None]
        clear = png_chunk(b"tRNS", bytes([0, 128]))
        data = png(*size, 3, depth, rows, interlace=depth == 4, extra=png_chunk(*palette) + clear)
        decodes(f"indexed_{depth}.png", data)
        composites(f"indexed_{depth}.png")
    short = rgb.quantize(40)
    part = png_chunk(b"PLTE", bytes(short.getpalette()[:25]))
    decodes("palette_short.png", png(*size, 3, 8, np.asarray(short)[..., None], extra=part))
    composites("palette_short_alpha.png",
               png(*size, 3, 8, np.asarray(short)[..., None], extra=part + png_chunk(b"tRNS", bytes(range(0, 240, 6)))))
    refuses("no_palette.png", png(*size, 3, 8, np.asarray(short)[..., None]), "there is no palette")
    for depth in (1, 2, 4, 8):
        key = struct.pack(">H", int(gray[8, 10, 0]) >> (8 - depth))
        composites(f"gray_key_{depth}.png", png(*size, 0, depth, gray >> (8 - depth), extra=png_chunk(b"tRNS", key)))
    wide = np.random.default_rng(66).integers(0, 65536, (19, 27, 3))
    key = struct.pack(">HHH", *(int(value) >> 8 for value in wide[3, 4]))
    composites("color_key_16.png", png(*size, 2, 16, wide, extra=png_chunk(b"tRNS", key)))

    [header], (_, data) = png_image(saved(rgb, "PNG"))
    pixels, end, rows = (b"IDAT", data), (b"IEND", b""), zlib.decompress(data)
    packed = lambda rows: (b"IDAT", zlib.compress(rows))
    decodes("no_end.png", png_of(header, pixels))
    decodes("no_checksums.png", png_of(header, pixels)[:-8])
    decodes("data_checksum.png", png_of(header, png_chunk(*pixels, checksum=1), end))
    decodes("data_in_pieces.png", png_of(header, *((b"IDAT", data[at : at + 99]) for at in range(0, len(data), 99)), end))
    decodes("data_empty_pieces.png", png_of(header, (b"IDAT", b""), (b"IDAT", data[:50]), (b"IDAT", b""), (b"IDAT", data[50:]), end))
    decodes("data_too_long.png", png_of(header, packed(rows + bytes(1000)), end))
    decodes("bytes_behind_data.png", png_of(header, (b"IDAT", data + b"garbage"), end))
    decodes("chunk_behind_data_cut.png", png_of(header, pixels, (b"abCD", bytes(100)))[:-4])
    decodes("unknown_chunks.png", png_of(header, (b"ABCD", b"critical"), (b"abCD", b"not"), pixels, end))
    decodes("profile_not_packed.png", png_of(header, (b"iCCP", b"x\0\0no zlib"), pixels, end))
    decodes("gamma.png", png_of(header, (b"gAMA", struct.pack(">I", 20000)), (b"sRGB", b"\0"), pixels, end))
    decodes("palette_unused.png", png_of(header, (b"PLTE", bytes(900)), pixels, end))
    decodes("animated.png", saved(rgb, "PNG", save_all=True, append_images=[picture(*size, 67)]))
    decodes("animated_default.png", saved(rgb, "PNG", save_all=True, append_images=[picture(*size, 67)], default_image=True))
    refuses("data_wrong_sum.png", png_of(header, (b"IDAT", data[:-4] + bytes(4)), end), "do not match their checksum")
    refuses("row_missing.png", png_of(header, packed(rows[:-82]), end), "png")
    refuses("data_interrupted.png", png_of(header, (b"IDAT", data[:99]), (b"tEXt", b"a\0b"), (b"IDAT", data[99:]), end), "png")
    refuses("header_damaged.png", png_of(png_chunk(*header, checksum=1), pixels, end), "the header is damaged")
    frame = struct.pack(">IIIIIHHBB", 0, 20, 10, 0, 0, 1, 10, 0, 0)
    refuses("first_frame_small.png", png_of(header, (b"acTL", struct.pack(">II", 1, 0)), (b"fcTL", frame), pixels, end),
            "does not cover the canvas")


def webp_variants():
    """Flags, frames on a canvas, wrong sizes, and alpha in every coding."""
    size = (27, 19)
    rgb, rgba = picture(*size, 68), picture(*size, 68)
    rgba.putalpha(alpha(*size))
    for quality in (0, 100):
        decodes(f"quality_{quality}.webp", saved(rgb, "WEBP", quality=quality, method=6))
    decodes("few_colors.webp", saved(rgb.quantize(5).convert("RGB"), "WEBP", lossless=True))
    decodes("two_colors.webp", saved(rgb.quantize(2).convert("RGB"), "WEBP", lossless=True, method=6, quality=100))
    for quality in (0, 60):
        composites(f"alpha_quality_{quality}.webp", saved(rgba, "WEBP", quality=70, alpha_quality=quality))
    decodes("one_pixel.webp", saved(rgb.crop((3, 3, 4, 4)), "WEBP"))

    lossy, lossless = webp_image(saved(rgb, "WEBP", quality=80)), webp_image(saved(rgb, "WEBP", lossless=True))
    lossy_alpha = webp_image(saved(rgba, "WEBP", quality=80))
    lossless_alpha = webp_image(saved(rgba, "WEBP", lossless=True, exact=True))
    end = (b"ABCD", b"abc")
    for name, data in {
        "alpha_missing": webp_of(webp_canvas(*size, 16), *lossy),
        "alpha_not_announced": webp_of(webp_canvas(*size, 0), *lossy_alpha),
        "alpha_of_lossless_not_announced": webp_of(webp_canvas(*size, 0), *lossless_alpha),
        "alpha_of_lossless_missing": webp_of(webp_canvas(*size, 16), *lossless),
        "unknown_chunks": webp_of(webp_canvas(*size, 0), end, *lossy, end),
        "bytes_behind": webp_of(*lossy) + b"bytes behind",
    }.items():
        composites(f"{name}.webp", data) if "alpha" in name else decodes(f"{name}.webp", data)
    # Pillow refuses wrong sizes, but the pixels are complete
    for name, off_by in {"size_too_large": 1000, "size_too_small": -20}.items():
        decodes(f"{name}.webp", webp_of(*lossy, size_off_by=off_by), opened(webp_of(*lossy)).convert("RGB"))

    animation = (b"ANIM", b"\1\2\3\xff\0\0")
    for name, frame, flags, corner, how in [
        ("lossy", lossy_alpha, 18, (10, 6), 0),
        ("lossless", lossless_alpha, 18, (10, 6), 0),
        ("not_blended", lossless_alpha, 18, (0, 0), 3),
        ("alpha_not_announced", lossless_alpha, 2, (4, 2), 0),
        ("opaque", lossy, 2, (4, 2), 0),
    ]:
        frames = [webp_frame(frame, corner, size, how), webp_frame(lossless, (0, 0), size)]
        data = webp_of(webp_canvas(40, 30, flags), animation, *frames)
        decodes(f"frame_{name}.webp", data)
        if flags & 16:
            composites(f"frame_{name}.webp")
    outside = webp_of(webp_canvas(40, 30, 2), animation, webp_frame(lossy, (20, 0), size))
    refuses("frame_outside.webp", outside, "frame is larger than the canvas")
    refuses("canvas_larger.webp", webp_of(webp_canvas(40, 30, 0), *lossy), "not as large as the canvas")
    refuses("no_frame.webp", webp_of(webp_canvas(*size, 2), animation, *lossy), "holds no image")
    refuses("data_cut.webp", webp_of((b"VP8L", lossless[0][1][:-40])), "webp")


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
    # Pillow clips 16-bit gray at 255, and takes the high byte in every other mode
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
    decodes("rgb_16.tif", tiff(wide[..., :3], 2, 16))
    decodes("rgb_16_big_endian.tif", tiff(wide[..., :3], 2, 16, order=">"))
    high = Image.fromarray((wide[..., 0] >> 8).astype(np.uint8)).convert("RGB")
    decodes("gray_16.tif", tiff(wide[..., :1], 1, 16), high)
    decodes("planar.tif", tiff(np.asarray(rgb), 2, planar=True))
    gray = np.asarray(rgb.convert("L"))[..., None]
    decodes("white_is_zero.tif", tiff(gray, 0))
    composites("rgba.tif")
    composites("gray_alpha.tif")


def tiff_layouts():
    """Strips and tiles, planes, compressions, byte orders, and missing data."""
    rgb = np.asarray(picture(27, 19, 50))
    rgb_16 = np.random.default_rng(51).integers(0, 65536, (19, 27, 3))
    decodes("strips.tif", tiff(rgb, 2, rows=4))
    decodes("tiles.tif", tiff(rgb, 2, tile=(16, 16)))
    decodes("tiles_larger.tif", tiff(rgb, 2, tile=(32, 32), compression=8))
    decodes("tiles_planar.tif", tiff(rgb, 2, tile=(16, 16), planar=True))
    decodes("tiles_lzw_predictor.tif", tiff(rgb, 2, tile=(16, 16), compression=5, predictor=True))
    decodes("strips_planar_deflate_predictor.tif",
            tiff(rgb, 2, rows=5, planar=True, compression=8, predictor=True))
    decodes("old_deflate.tif", tiff(rgb, 2, compression=32946))
    decodes("tiles_packbits.tif", tiff(rgb, 2, tile=(16, 16), compression=32773))
    decodes("zstd.tif", saved(Image.fromarray(rgb), "TIFF", compression="zstd"))
    decodes("predictor_16.tif", tiff(rgb_16, 2, 16, compression=5, predictor=True))
    decodes("predictor_16_big_endian.tif", tiff(rgb_16, 2, 16, compression=8, predictor=True, order=">"))
    decodes("planar_16.tif", tiff(rgb_16, 2, 16, compression=8, planar=True, rows=7))
    decodes("big.tif", tiff(rgb, 2, rows=6, big=True))
    # Pillow reads the little-endian kind only
    decodes("big_big_endian.tif", tiff(rgb, 2, tile=(16, 16), compression=5, big=True, order=">"),
            Image.fromarray(rgb))
    plain = tiff(rgb, 2)
    decodes("swapped_magic.tif", b"II\0*" + plain[4:])
    decodes("rows_not_stated.tif", tiff(rgb, 2, compression=5, tags={278: None}))
    decodes("lengths_not_stated.tif", tiff(rgb, 2, compression=5, rows=19, tags={279: None}))
    decodes("pages.tif", saved(Image.fromarray(rgb), "TIFF", save_all=True, append_images=[picture(9, 9, 52)]))
    codes = [lzw(rgb[y : y + 5].tobytes(), dialect="old tiff") for y in range(0, 19, 5)]
    decodes("old_lzw.tif", tiff_of(codes, (27, 19), 3, 2, compression=5, rows=5))
    for name, fill in {"fill_order": 1, "fill_order_lzw": 5}.items():
        decodes(f"{name}.tif", tiff(rgb, 2, rows=8, compression=fill, fill_order=2))

    # the missing bytes belong to no pixel: the padding of the last tile, the checksum of the last strip
    last = tiff(rgb, 2, tile=(16, 16), order=">")
    cut = lambda segments: [*segments[:-1], segments[-1][:-60]]
    parts = [np.zeros((16, 16, 3), np.uint8) for _ in range(4)]
    for index, part in enumerate(parts):
        seen = rgb[index // 2 * 16 :, index % 2 * 16 :][:16, :16]
        part[: seen.shape[0], : seen.shape[1]] = seen
    tiles = cut([part.tobytes() for part in parts])
    decodes("tail_missing_tile.tif", at_the_end(tiff_of(tiles, (27, 19), 3, 2, tile=(16, 16)), tiles), opened(last).convert("RGB"))
    strips = [zlib.compress(rgb.tobytes())[:-4]]
    decodes("tail_missing_deflate.tif",
            at_the_end(tiff_of(strips, (27, 19), 3, 2, compression=8), strips), opened(plain).convert("RGB"))


def at_the_end(data, segments):
    """The same TIFF with its last strip or tile at its end, where nothing follows it."""
    at = len(data)
    offset = struct.pack("<I", data.index(segments[-1]))
    place = data.rindex(offset)
    return data[:place] + struct.pack("<I", at) + data[place + 4 :] + segments[-1]


def tiff_colors():
    """Photometric interpretations, bits and extra samples."""
    rgb = np.asarray(picture(27, 19, 53))
    gray = np.asarray(picture(27, 19, 54).convert("L"))[..., None]
    alphas = np.asarray(alpha(27, 19))[..., None]
    rgba = np.dstack([rgb, alphas])
    premultiplied = np.dstack([rgb.astype(int) * alphas // 255, alphas])
    # premultiplied colours above their alpha are clipped to white
    premultiplied[3, 3] = (250, 9, 0, 7)
    colormap = [int(value) for value in np.random.default_rng(55).integers(0, 65536, 768)]
    for bits in (1, 2, 4):
        few = gray >> (8 - bits)
        decodes(f"gray_{bits}.tif", tiff(few, 1, bits, rows=4))
        decodes(f"white_is_zero_{bits}.tif", tiff(few, 0, bits, compression=5, tile=(16, 16)))
        map_ = colormap[: 3 << bits]
        decodes(f"palette_{bits}.tif", tiff(few, 3, bits, compression=32773, tags={320: (3, map_)}))
        decodes(f"fill_order_{bits}.tif", tiff(few, 0, bits, fill_order=2))
    decodes("palette.tif", tiff(gray, 3, tags={320: (3, colormap)}))
    decodes("palette_fill_order.tif", tiff(gray, 3, fill_order=2, tags={320: (3, colormap)}))
    decodes("palette_short.tif", tiff(gray, 3, tags={320: (3, colormap[:300])}))
    decodes("palette_extra.tif", tiff(np.dstack([gray, alphas]), 3, tags={320: (3, colormap), 338: (3, [0])}))
    decodes("palette_alpha.tif", tiff(np.dstack([gray, alphas]), 3, tags={320: (3, colormap), 338: (3, [2])}))
    composites("palette_alpha.tif")
    decodes("gray_signed.tif", tiff(gray, 1, tags={339: (3, [2])}))
    wide = np.random.default_rng(56).integers(0, 65536, (19, 27, 4))
    high = Image.fromarray((wide[..., 0] >> 8).astype(np.uint8)).convert("RGB")
    decodes("white_is_zero_16.tif", tiff(wide[..., :1], 0, 16), high)
    decodes("rgba_16.tif", tiff(wide, 2, 16, compression=5, tags={338: (3, [2])}))
    decodes("premultiplied_16.tif", tiff(wide, 2, 16, tags={338: (3, [1])}))
    decodes("extra_16.tif", tiff(wide, 2, 16, tags={338: (3, [0])}))
    decodes("cmyk_16.tif", tiff(wide, 5, 16, order=">"))
    decodes("premultiplied.tif", tiff(premultiplied, 2, tags={338: (3, [1])}))
    decodes("premultiplied_planar.tif", tiff(premultiplied, 2, compression=5, planar=True, tags={338: (3, [1])}))
    composites("premultiplied.tif")
    decodes("meaning_not_stated.tif", tiff(rgba, 2))
    decodes("meaning_not_stated_planar.tif", tiff(rgba, 2, compression=8, planar=True))
    decodes("corel_alpha.tif", tiff(rgba, 2, tags={338: (3, [999])}))
    decodes("extra.tif", tiff(rgba, 2, tags={338: (3, [0])}))
    decodes("extra_planar.tif", tiff(rgba, 2, planar=True, compression=8, tags={338: (3, [0])}))
    five = np.dstack([rgba, gray])
    decodes("premultiplied_and_extra.tif", tiff(np.dstack([premultiplied, gray]), 2, tags={338: (3, [1, 0])}))
    decodes("alpha_and_extra.tif", tiff(five, 2, compression=5, tags={338: (3, [2, 0])}))
    decodes("cmyk_planar.tif", tiff(rgba, 5, planar=True, tile=(16, 16)))
    decodes("cmyk_and_extra.tif", tiff(five, 5, tags={338: (3, [0])}))

    refuses("float_16.tif", tiff(wide[..., :1], 1, 16, tags={339: (3, [3])}), "floating-point samples")
    refuses("float_32.tif", tiff(wide[..., :1], 1, 32, tags={339: (3, [3])}), "samples of 32 bits")
    refuses("signed_16.tif", tiff(wide[..., :1], 1, 16, tags={339: (3, [2])}), "signed samples")
    refuses("gray_12.tif", tiff(wide[..., :1], 1, 16, tags={258: (3, [12])}), "samples of 12 bits")
    refuses("lab.tif", tiff(rgb, 8), "CIE L*a*b*")
    refuses("ycbcr.tif", tiff(rgb, 6, compression=5), "YCbCr is supported inside JPEG only")
    refuses("lzma.tif", saved(Image.fromarray(rgb), "TIFF", compression="lzma"), "LZMA")
    refuses("old_jpeg.tif", tiff_of([b"\xff\xd8"], (27, 19), 3, 6, compression=6), "before TIFF 6.0")
    refuses("predictor_3.tif", tiff(rgb, 2, compression=5, tags={317: (3, [3])}), "predictor 3")
    refuses("predictor_4_bits.tif", tiff(gray >> 4, 1, 4, 5, tags={317: (3, [2])}), "differences of 4 bits")
    refuses("dng.tif", tiff(rgb, 2, tags={50706: (1, [1, 4, 0, 0])}), "raw camera file (DNG)")
    refuses("preview.tif", tiff(rgb, 2, tags={254: (4, [1]), 330: (4, [8, 8])}), "only the preview of another")
    refuses("strip_missing.tif", tiff(rgb, 2, rows=8, tags={273: (4, [8])}), "strip 1 is missing")
    refuses("strips_too_many.tif", tiff(rgb, 2, rows=8, tags={278: (3, [10])}), "3 strips or tiles are listed, not 2")
    refuses("lzw_cut.tif", tiff_of([lzw(rgb.tobytes())[:-20]], (27, 19), 3, 2, compression=5), "strip 0: holds")


def tiff_faxes():
    """Every scheme of CCITT fax data."""
    image = picture(83, 19, 57).convert("1")
    schemes = {"runs": ("tiff_ccitt", {}), "group_3": ("group3", {}), "group_3_2d": ("group3", {292: 1}),
               "group_3_filled": ("group3", {292: 5}), "group_4": ("group4", {278: 6})}
    for name, (compression, tags) in schemes.items():
        decodes(f"{name}.tif", saved(image, "TIFF", compression=compression, tiffinfo=tags))

    def stored(compression, tags=()):
        """The strips of the TIFF that Pillow writes."""
        data = saved(image, "TIFF", compression=compression, tiffinfo=dict(tags))
        fields = opened(data).tag_v2
        return [data[at : at + length] for at, length in zip(fields[273], fields[279], strict=True)]

    words = b"".join(row + b"\0" * (len(row) % 2) for row in stored("tiff_ccitt", {278: 1}))
    decodes("runs_of_words.tif", tiff_of([words], image.size, 1, 1, 1, 32771), image.convert("RGB"))
    reverse = [strip.translate(REVERSED) for strip in stored("group4", {278: 6})]
    decodes("group_4_fill_order.tif", tiff_of(reverse, image.size, 1, 0, 1, 4, rows=6, tags={266: (3, [2])}))
    cut = stored("group4")[0][:-30]
    refuses("group_4_cut.tif", tiff_of([cut], image.size, 1, 1, 1, 4), "fax data is damaged or ends")


def tiff_jpegs():
    """JPEG inside TIFF: with separate tables or not, in strips and tiles, every colour model."""
    image = picture(67, 45, 58)
    for mode in ("RGB", "L", "YCbCr", "CMYK"):
        data = saved(image.convert(mode), "TIFF", compression="jpeg", quality=80, tiffinfo={278: 16})
        decodes(f"jpeg_{mode.lower()}.tif", data)
    tiles = [image.crop((x, y, x + 32, y + 32)) for y in range(0, 45, 32) for x in range(0, 67, 32)]
    streams = [saved(tile, "JPEG", quality=85) for tile in tiles]
    tags = {530: (3, [2, 2])}
    decodes("jpeg_tiles.tif", tiff_of(streams, image.size, 3, 6, compression=7, tile=(32, 32), tags=tags))
    whole = opened((FOLDER / "jpeg_tiles.tif").read_bytes()).convert("RGB")
    ends = [stream[:-2] for stream in streams]
    decodes("jpeg_ends_missing.tif", tiff_of(ends, image.size, 3, 6, compression=7, tile=(32, 32), tags=tags), whole)
    short = [stream[: len(stream) // 2] for stream in streams]
    refuses("jpeg_cut.tif", tiff_of(short, image.size, 3, 6, compression=7, tile=(32, 32), tags=tags), "tile 0: ")
    progressive = [saved(image, "JPEG", progressive=True)]
    refuses("jpeg_progressive.tif", tiff_of(progressive, image.size, 3, 6, compression=7, tags=tags),
            "not sequential")


def bmp_variants():
    """Headers, depths, channel masks, run lengths, and missing or unusual data."""
    size = (27, 19)
    rng = np.random.default_rng(60)
    rgb = np.asarray(picture(*size, 61))
    indices = np.asarray(picture(*size, 62).convert("L"))
    rows_24 = bmp_rows(np.ascontiguousarray(rgb[..., ::-1]), 8)
    palette = b"".join(bytes([*color, 0]) for color in rng.integers(0, 256, (256, 3)).tolist())
    without_padding = b"".join(palette[i : i + 3] for i in range(0, 1024, 4))
    grays = bytes(value for gray in range(256) for value in (gray, gray, gray, 0))
    for bits in (1, 4, 8):
        data = bmp_rows(indices >> (8 - bits), bits)
        decodes(f"palette_{bits}.bmp", bmp(size, bits, data, palette=palette[: 4 << bits]))
        decodes(f"os2_{bits}.bmp", bmp(size, bits, data, header=12, palette=without_padding[: 3 << bits]))
    decodes("offset_0.bmp", bmp(size, 24, rows_24, offset=0))
    decodes("offset_0_palette.bmp", bmp(size, 8, bmp_rows(indices, 8), palette=palette, offset=0))
    decodes("offset_of_palette.bmp", bmp(size, 8, bmp_rows(indices, 8), palette=palette, offset=54))
    decodes("offset_odd.bmp", bmp(size, 24, b"\7" + rows_24, offset=55))
    decodes("top_down.bmp", bmp(size, 24, rows_24, top_down=True))
    decodes("os2_24.bmp", bmp(size, 24, rows_24, header=12))
    for header in (52, 56, 64, 108, 124):
        decodes(f"header_{header}.bmp", bmp(size, 8, bmp_rows(indices, 8), header, palette=palette))
    decodes("padding_missing.bmp", bmp(size, 24, rows_24[:-3]))
    refuses("cut.bmp", bmp(size, 24, rows_24[:-4]), "18 of 19 rows are there")
    refuses("bits_2.bmp", bmp(size, 2, rows_24), "2 bits a pixel")
    refuses("png_inside.bmp", bmp(size, 24, rows_24, compression=5), "compression 5")
    decodes("palette_short.bmp", bmp(size, 8, bmp_rows(indices, 8), colors=90, palette=palette[:360]))
    decodes("grays_short.bmp", bmp(size, 8, bmp_rows(indices, 8), colors=90, palette=grays[:360]))

    words = rng.integers(0, 65536, (19, 27))
    decodes("rgb_555.bmp", bmp(size, 16, bmp_rows(words, 16)))
    for name, masks in {"565": (0xF800, 0x7E0, 0x1F), "555": (0x7C00, 0x3E0, 0x1F)}.items():
        decodes(f"masks_{name}.bmp", bmp(size, 16, bmp_rows(words, 16), 56, 3, masks=masks))
    longs = rng.integers(0, 1 << 32, (19, 27), dtype=np.uint64)
    decodes("rgb_32.bmp", bmp(size, 32, bmp_rows(longs, 32)))
    masks = {
        "bgrx": (0xFF0000, 0xFF00, 0xFF, 0), "xbgr": (0xFF000000, 0xFF0000, 0xFF00, 0),
        "bgxr": (0xFF000000, 0xFF00, 0xFF, 0), "abgr": (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000), "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        "bgar": (0xFF000000, 0xFF00, 0xFF, 0xFF0000), "none": (0, 0, 0, 0),
    }
    for name, values in masks.items():
        decodes(f"masks_{name}.bmp", bmp(size, 32, bmp_rows(longs, 32), 108, 3, masks=values))
    composites("masks_bgar.bmp")
    head = bmp(size, 32, b"", compression=3, offset=66) + struct.pack("<3I", 0xFF000000, 0xFF0000, 0xFF00)
    decodes("masks_behind_header.bmp", head + bmp_rows(longs, 32))

    for bits, kind in ((8, 1), (4, 2)):
        runs = run_lengths(indices[::-1] >> (8 - bits), bits)
        colors = palette[: 4 << bits]
        decodes(f"runs_{bits}.bmp", bmp(size, bits, runs, compression=kind, palette=colors))
        decodes(f"runs_{bits}_top_down.bmp",
                bmp(size, bits, runs, compression=kind, palette=colors, top_down=True))
        stored = indices[::-1] >> (8 - bits)
        # eight rows, 3 pixels to the right and 2 rows up, a run, and eight rows more
        skips = run_lengths(stored[:8], bits)[:-2] + b"\0\2\3\2\x14\x56\0\0" + run_lengths(stored[11:], bits)
        decodes(f"runs_{bits}_skips.bmp", bmp(size, bits, skips, compression=kind, palette=colors))
        refuses(f"runs_{bits}_cut.bmp", bmp(size, bits, runs[:99], compression=kind, palette=colors), "cut short")


def run_lengths(rows, bits):
    """Runs, literal stretches of an even length, and a code at the end of each row."""
    out = b""
    for row in rows:
        x = 0
        while x < len(row):
            run = 1
            while x + run < len(row) and row[x + run] == row[x]:
                run += 1
            value = int(row[x])
            if run < 3 and len(row) - x >= 4:
                stretch = [int(v) for v in row[x : x + 4]]
                pairs = zip(stretch[::2], stretch[1::2], strict=True)
                out += b"\0\4" + (bytes(stretch) if bits == 8 else bytes(a << 4 | b for a, b in pairs))
                x += 4
            else:
                out += bytes([run, value if bits == 8 else value << 4 | value])
                x += run
        out += b"\0\0"
    return out + b"\0\1"


def gif_variants():
    """Palettes, frames off the screen, other blocks, and missing or unusual data."""
    size = (27, 19)
    rng = np.random.default_rng(63)
    indices = np.asarray(picture(*size, 64).convert("L"))
    palette = bytes(rng.integers(0, 256, 768).tolist())
    grays = bytes(value for gray in range(256) for value in (gray, gray, gray))
    frame = gif_frame(indices)
    decodes("palette_short_8.gif", gif(size, palette[:24], frame))
    decodes("palette_short_128.gif", gif(size, palette[:384], frame))
    decodes("palette_missing.gif", gif(size, b"", frame))
    decodes("grays_short.gif", gif(size, grays[:48], frame))
    decodes("palette_local.gif", gif(size, palette, gif_frame(indices, palette[96:480])))
    decodes("palette_local_short.gif", gif(size, grays, gif_frame(indices, palette[96:120])))
    decodes("bits_1.gif", gif(size, palette[:6], gif_frame(indices >> 7, data_bits=2)))
    decodes("bits_4.gif", gif(size, palette[:48], gif_frame(indices >> 4, data_bits=4)))
    decodes("blocks_small.gif", gif(size, palette, gif_frame(indices, block=3)))
    extensions = b"!\xfe\3abc\0!\xff\x0bNETSCAPE2.0\3\1\0\0\0\0\0"
    decodes("extensions.gif", gif(size, palette, extensions, frame))
    decodes("screen_empty.gif", gif((0, 0), palette, frame))
    control = graphic_control(transparent=int(indices[4, 4]))
    corner = gif_frame(indices, corner=(5, 2), interlaced=True)
    decodes("interlaced_corner.gif", gif((40, 30), palette, control, corner))
    decodes("interlaced_corner_short.gif", gif((40, 30), palette[:96], control, graphic_control(), corner))
    composites("interlaced_corner.gif")
    for disposal in (1, 2, 3):
        second = gif_frame(255 - indices[:9, :9], corner=(3, 3))
        control = graphic_control(transparent=7, disposal=disposal)
        decodes(f"disposal_{disposal}.gif", gif(size, palette, control, frame, control, second))
    whole = gif(size, palette, frame)
    decodes("tail_missing.gif", whole[:-3], opened(whole).convert("RGB"))
    refuses("cut.gif", whole[:-90], "of 513 pixels are there")
    refuses("no_frame.gif", gif(size, palette, extensions), "holds no frame")
    refuses("frame_empty.gif", gif(size, palette, gif_frame(indices[:0, :0])), "has no pixels")
    broken = frame[:11] + bytes([frame[11]]) + b"\xff" * 200 + frame[212:]
    refuses("codes_damaged.gif", gif(size, palette, broken), "are damaged")


def turned_by(value):
    block = Image.Exif()
    block[0x0112] = value
    return block


def oriented(name, data):
    """Add a case: `data` is turned as by ImageOps.exif_transpose, or not at all if Pillow cannot read the orientation."""
    put(name, data)
    image = opened(data)
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, struct.error):
        pass
    expect("orientation", name, name, image.convert("RGB"))


def metadata():
    """Orientations in all kinds of metadata, and damaged metadata."""
    rgb = picture(33, 21, 60)
    jpeg = saved(rgb, "JPEG", quality=80)
    pairs = lambda *numbers: struct.pack(f">{len(numbers)}I", *numbers)
    behind = struct.pack(">I", 26)
    blocks = {
        "long": exif(kind=4),
        "byte": exif(kind=1),
        "signed_byte": exif(kind=6),
        "text": exif(b"6\0", kind=2, count=2),
        "float": exif(kind=11),
        "rational": exif(behind, kind=5, data=pairs(12, 2)),
        "rational_of_zero": exif(behind, kind=5, data=pairs(6, 0)),
        "several": exif(behind, count=4, data=struct.pack(">4H", 6, 1, 2, 3)),
        "little_endian": exif(order="<"),
        "swapped_magic": exif(magic=b"MM*\0"),
        "big_magic": exif(magic=b"II+\0", order="<"),
        "far": exif(at=40),
        "nine": exif(9),
        "zero": exif(0),
        "none": exif(count=0),
        "unknown_kind": exif(kind=4)[:12] + b"\0\x63" + exif(kind=4)[14:],
        "two": exif(before=[(274, 3, 1, b"\0\3\0\0")]),
        "behind_a_broken_one": exif(before=[(271, 2, 99, b"\0\0\xff\xff")]),
        "cut": exif()[:-9],
        "garbage": b"garbage",
        "empty": b"",
    }
    other = segment(0xE1, XMP_SEGMENT + xmp(8))
    for kind, block in blocks.items():
        oriented(f"exif_{kind}.jpg", with_segments(jpeg, segment(0xE1, b"Exif\0\0" + block), other))
    halves = [segment(0xE1, b"Exif\0\0" + half) for half in (exif()[:13], exif()[13:])]
    oriented("exif_in_two.jpg", with_segments(jpeg, *halves))
    oriented("exif_prefixed_twice.jpg", with_segments(jpeg, segment(0xE1, b"Exif\0\0Exif\0\0" + exif())))
    packets = [segment(0xE1, XMP_SEGMENT + xmp(value)) for value in (3, 6)]
    oriented("xmp_two.jpg", with_segments(jpeg, *packets))
    element = b"<tiff:Orientation>6</tiff:Orientation>"
    oriented("xmp_element.jpg", with_segments(jpeg, segment(0xE1, XMP_SEGMENT + element)))
    oriented("xmp_quoted_otherwise.jpg", with_segments(jpeg, segment(0xE1, XMP_SEGMENT + xmp().replace(b'"', b"'"))))
    oriented("multi_picture.jpg", saved(rgb, "MPO", save_all=True, append_images=[picture(9, 9, 61)], exif=turned_by(6)))
    profile = lambda number, count: segment(0xE2, b"ICC_PROFILE\0" + bytes([number, count]) + b"profile")
    for name, profiles in {
        "from_0": [profile(0, 2), profile(1, 2)],
        "missing": [profile(1, 3), profile(3, 3)],
        "counts": [profile(1, 2), profile(2, 3)],
        "twice": [profile(1, 2), profile(1, 2)],
    }.items():
        decodes(f"icc_{name}.jpg", with_segments(jpeg, *profiles))

    [header], pixels = png_image(saved(rgb, "PNG"))
    end, text = (b"IEND", b""), raw_profile(exif())
    key, xmp_key = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"
    for name, chunk in {
        "raw": (b"tEXt", key + text),
        "raw_packed": (b"zTXt", key + b"\0" + zlib.compress(text)),
        "raw_international": (b"iTXt", key + b"\1\0en\0\0" + zlib.compress(text)),
        "raw_damaged": (b"tEXt", key + text[:-3] + b"xyz"),
        "raw_not_packed": (b"zTXt", key + b"\0no zlib"),
        "text": (b"tEXt", b"exif\0" + exif()),
        "own": (b"eXIf", exif()),
        "prefixed": (b"eXIf", b"Exif\0\0" + exif()),
        "xmp": (b"iTXt", xmp_key + b"\0\0\0\0" + xmp()),
        "xmp_packed": (b"iTXt", xmp_key + b"\1\0\0\0" + zlib.compress(xmp())),
        "xmp_no_text": (b"iTXt", xmp_key + b"\0\0\0\0\xff" + xmp()),
        "xmp_text": (b"tEXt", xmp_key + xmp()),
    }.items():
        oriented(f"{name}_before.png", png_of(header, chunk, pixels, end))
        oriented(f"{name}_behind.png", png_of(header, pixels, chunk, end))
    oriented("own_twice.png", png_of(header, (b"eXIf", exif(3)), pixels, (b"eXIf", exif(8)), end))
    oriented("own_and_raw.png", png_of(header, (b"eXIf", exif(3)), (b"tEXt", key + text), pixels, end))

    lossless = webp_image(saved(rgb, "WEBP", lossless=True))
    for name, flags, chunk in [
        ("exif_announced", 8, (b"EXIF", exif())),
        ("exif_prefixed", 8, (b"EXIF", b"Exif\0\0" + exif())),
        ("exif_not_announced", 0, (b"EXIF", exif())),
        ("exif_missing", 8, (b"ABCD", b"abc")),
        ("xmp", 4, (b"XMP ", xmp())),
        ("xmp_not_announced", 8, (b"XMP ", xmp())),
    ]:
        oriented(f"{name}.webp", webp_of(webp_canvas(33, 21, flags), *lossless, chunk))

    strip = [np.asarray(rgb).tobytes()]
    for name, kind in {"byte": 1, "text": 2, "signed_byte": 6, "undefined": 7, "short": 3, "long": 4}.items():
        oriented(f"orientation_{name}.tif", tiff_of(strip, rgb.size, 3, 2, tags={274: (kind, [6])}))


def orientations():
    rgb = picture(33, 21, 10)
    for value in range(1, 9):
        name = f"orientation_{value}.jpg"
        data = put(name, saved(rgb, "JPEG", quality=90, exif=turned_by(value)))
        upright = ImageOps.exif_transpose(opened(data)).convert("RGB")
        expect("orientation", f"{value}-decoded", name, upright)
        for filter, method in FILTERS.items():
            resized = upright.resize((11, 15), method)
            expect("orientation", f"{value}-{filter}", name, resized, resize=resize(11, 15, filter=filter))
    expect("orientation", "ignored", name, opened(data).convert("RGB"), orientation="ignore")
    covered = cover(upright, 24, 16, "bicubic")
    expect("orientation", "8-cover", name, covered, resize=resize(24, 16, "cover", "bicubic"))

    turned = saved(rgb, "TIFF", tiffinfo={274: 8})
    put("orientation_8.tif", turned)
    # Pillow turns a TIFF when it loads it
    for name, preprocess in {"tiff": {}, "tiff-ignored": {"orientation": "ignore"}}.items():
        expect("orientation", name, "orientation_8.tif", opened(turned).convert("RGB"), **preprocess)

    for name, data in {
        "exif.png": saved(rgb, "PNG", exif=turned_by(6)),
        "exif.webp": saved(rgb, "WEBP", lossless=True, exif=turned_by(6)),
        "orientation.tif": saved(rgb, "TIFF", tiffinfo={274: 6}, compression="tiff_lzw"),
        "xmp.jpg": saved(rgb, "JPEG", quality=90, xmp=xmp()),
    }.items():
        put(name, data)
        expect("orientation", name, name, ImageOps.exif_transpose(opened(data)).convert("RGB"))


def resize(width, height, fit="stretch", filter="bilinear"):
    return {"width": width, "height": height, "fit": fit, "filter": filter}


def cover(image, width, height, filter):
    """torchvision's Resize to a size that covers the target, then CenterCrop."""
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
for make in (jpegs, jpeg_variants, pngs, png_variants, webps, webp_variants, metadata, gifs, gif_variants, bmps, bmp_variants, tiffs, tiff_layouts, tiff_colors, tiff_faxes,
             tiff_jpegs, orientations, resizes):
    make()
lines = ",\n".join("  " + json.dumps(case) for case in cases)
whole = ",\n".join(f"  {json.dumps(name)}: {json.dumps(lengths)}" for name, lengths in cuts.items())
reasons = ",\n".join(f"  {json.dumps(name)}: {json.dumps(reason)}" for name, reason in refused.items())
(FOLDER / "cases.json").write_text(f'{{"cases": [\n{lines}\n],\n"lengths_that_load": {{\n{whole}\n}},\n"refused": {{\n{reasons}\n}}}}\n')
print(len(cases), "cases,", sum(f.stat().st_size for f in FOLDER.rglob("*.*")) // 1024, "KiB")
