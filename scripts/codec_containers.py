"""Split and reassemble JPEG, PNG and WebP, and write EXIF.

Used by codec_fixtures.py for files that no encoder writes: unusual metadata, damage, missing ends.
"""

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"


def exif(value=6, kind=3, count=1, order=">", at=8, before=(), magic=None, data=b""):
    """A TIFF structure with the orientation `value`, bytes or a number in `kind`'s format.

    `before` are entries before it (tag, kind, count, four bytes); `data` follows the directory.
    """
    formats = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 13: "I"}
    field = value if isinstance(value, bytes) else struct.pack(order + formats[kind], value)
    entries = [*before, (274, kind, count, field.ljust(4, b"\0"))]
    head = magic or (b"MM\0*" if order == ">" else b"II*\0")
    block = (head + struct.pack(order + "I", at)).ljust(at, b"\0") + struct.pack(order + "H", len(entries))
    for tag, entry_kind, entry_count, entry in entries:
        block += struct.pack(order + "HHI", tag, entry_kind, entry_count) + entry
    return block + b"\0\0\0\0" + data


def xmp(value=6):
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % value


def raw_profile(block):
    """A profile as ImageMagick's text: an empty line, the name, the length, hexadecimal digits."""
    digits = block.hex()
    lines = [digits[at : at + 72] for at in range(0, len(digits), 72)]
    return ("\n".join(["", "exif", f"{len(block):8}", *lines]) + "\n").encode()


def segment(marker, payload):
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def with_segments(jpeg, *segments):
    """The JPEG with further segments after its first marker."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def frame_at(jpeg):
    """Offset of the start-of-frame segment."""
    at = 2
    while jpeg[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
    return at


def with_frame(jpeg, marker=None, bits=None, size=None, factors=()):
    """The JPEG with another frame header over the same data."""
    changed, at = bytearray(jpeg), frame_at(jpeg)
    if marker is not None:
        changed[at + 1] = marker
    if bits is not None:
        changed[at + 4] = bits
    if size is not None:
        changed[at + 5 : at + 9] = struct.pack(">HH", size[1], size[0])
    for component, (wide, high) in enumerate(factors):
        changed[at + 11 + 3 * component] = wide << 4 | high
    return bytes(changed)


def arithmetic_jpeg(width, height, data, progressive=False):
    """A gray JPEG with arithmetic coding. Each scan is `data`; decoders read zeros after it."""
    stuffed = data.replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    head = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([9] * 64)) + segment(0xCA if progressive else 0xC9, frame)
    scans = [(0, 0), (1, 5), (6, 63)] if progressive else [(0, 63)]
    for first, last in scans:
        head += segment(0xDA, bytes([1, 1, 0, first, last, 0])) + stuffed
    return head + b"\xff\xd9"


def lossless_jpeg(samples):
    """A gray lossless JPEG (predictor: the pixel to the left) of rows of samples."""
    bits = ""
    for y, row in enumerate(samples):
        for x, sample in enumerate(row):
            left = int(row[x - 1]) if x else int(samples[y - 1][0]) if y else 128
            difference = int(sample) - left
            size = abs(difference).bit_length()
            # nine categories, each a code of four bits
            bits += format(size, "04b")
            if size:
                bits += format(difference if difference > 0 else difference + (1 << size) - 1, f"0{size}b")
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    frame = segment(0xC3, struct.pack(">BHHB", 8, len(samples), len(samples[0]), 1) + b"\1\x11\0")
    table = segment(0xC4, b"\0" + bytes([0, 0, 0, 9]) + bytes(12) + bytes(range(9)))
    return b"\xff\xd8" + frame + table + segment(0xDA, b"\1\1\0\1\0\0") + data + b"\xff\xd9"


def png_chunk(kind, payload, checksum=None):
    right = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", right if checksum is None else checksum)


def png_chunks(png):
    """Kinds and payloads."""
    at = len(PNG_SIGNATURE)
    while at < len(png):
        length = struct.unpack(">I", png[at : at + 4])[0]
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


def png_of(*chunks):
    """A PNG of chunks, each given as bytes or as a kind and a payload."""
    parts = (chunk if isinstance(chunk, bytes) else png_chunk(*chunk) for chunk in chunks)
    return PNG_SIGNATURE + b"".join(parts)


def png_image(png):
    """The chunks that the pixels need: those before the image data, and the image data as one chunk."""
    chunks = list(png_chunks(png))
    data = b"".join(payload for kind, payload in chunks if kind == b"IDAT")
    head = [chunk for chunk in chunks if chunk[0] in (b"IHDR", b"PLTE", b"tRNS")]
    return head, (b"IDAT", data)


def riff_chunk(kind, payload):
    return kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)


def webp_of(*chunks, size_off_by=0):
    """A WebP of kinds and payloads. `size_off_by` is added to the size in its header."""
    body = b"WEBP" + b"".join(riff_chunk(*chunk) for chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + size_off_by) + body


def webp_image(webp):
    """The chunks with the pixels of a still image."""
    at, chunks = 12, []
    while at + 8 <= len(webp):
        length = struct.unpack("<I", webp[at + 4 : at + 8])[0]
        chunks.append((webp[at : at + 4], webp[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return [chunk for chunk in chunks if chunk[0] in (b"ALPH", b"VP8 ", b"VP8L")]


def u24(value):
    return struct.pack("<I", value)[:3]


def webp_canvas(width, height, flags):
    """The header of an extended file. Flags: animation 2, XMP 4, EXIF 8, alpha 16."""
    return b"VP8X", bytes([flags, 0, 0, 0]) + u24(width - 1) + u24(height - 1)


def webp_frame(chunks, corner, size, how=0):
    """A frame of an animation; `how` is 1 to dispose of the frame, 2 not to blend it."""
    place = b"".join(u24(side // 2) for side in corner) + b"".join(u24(side - 1) for side in size)
    return b"ANMF", place + u24(100) + bytes([how]) + b"".join(riff_chunk(*chunk) for chunk in chunks)
