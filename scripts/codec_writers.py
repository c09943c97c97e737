"""Write TIFF, BMP and GIF in variants that Pillow reads but does not write.

Used by codec_fixtures.py. Pixels come in as arrays, height × width × channels (TIFF) or height ×
width (BMP of indices, GIF).
"""

import struct
import zlib

import numpy as np

# the bits of each byte in reverse
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def packed(rows, bits, order="<"):
    """Rows of samples as bytes; rows of less than 8 bits are padded to whole bytes."""
    if bits == 8:
        return rows.astype(np.uint8).tobytes()
    if bits in (16, 32):
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    lines = []
    for row in rows.reshape(len(rows), -1):
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        lines.append(bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)))
    return b"".join(lines)


def lzw(data, data_bits=8, dialect="tiff"):
    """LZW codes in a dialect: "gif", "tiff", or "old tiff", which packs codes as GIF does."""
    first = dialect == "tiff"
    early = int(first)
    clear = 1 << data_bits
    text = []

    def emit(code):
        bits = format(code, f"0{size}b")
        text.append(bits if first else bits[::-1])

    size, table = data_bits + 1, {bytes([i]): i for i in range(clear)}
    following = clear + 2
    emit(clear)
    before = b""
    for byte in data:
        longer = before + bytes([byte])
        if longer in table:
            before = longer
            continue
        emit(table[before])
        if following < 4094:
            table[longer] = following
            if following + early == (1 << size) and size < 12:
                size += 1
            following += 1
        else:
            emit(clear)
            size, table, following = data_bits + 1, {bytes([i]): i for i in range(clear)}, clear + 2
        before = bytes([byte])
    if before:
        emit(table[before])
        # the decoder also adds an entry for this code
        if following + early == (1 << size) and size < 12:
            size += 1
    emit(clear + 1)
    bits = "".join(text)
    bits += "0" * (-len(bits) % 8)
    octets = (bits[i : i + 8] for i in range(0, len(bits), 8))
    return bytes(int(octet if first else octet[::-1], 2) for octet in octets)


def packbits(data):
    """Literals and runs of 8 bytes."""
    out = b""
    for at in range(0, len(data), 8):
        part = data[at : at + 8]
        run = len(set(part)) == 1
        out += bytes([257 - len(part), part[0]]) if run and len(part) > 1 else bytes([len(part) - 1]) + part
    return out


COMPRESSIONS = {1: bytes, 5: lzw, 8: zlib.compress, 32946: zlib.compress, 32773: packbits}


def tiff(samples, photometric, bits=8, compression=1, planar=False, tile=None, rows=None, predictor=False,
         fill_order=1, order="<", big=False, tags=()):
    """A TIFF of strips of `rows` rows, or of tiles of `tile` = (width, height) pixels."""
    height, width, channels = samples.shape
    rows = rows or height
    step = (tile[1], tile[0]) if tile else (rows, width)
    segments = []
    for plane in [samples[..., i : i + 1] for i in range(channels)] if planar else [samples]:
        for y in range(0, height, step[0]):
            for x in range(0, width, step[1]):
                part = plane[y : y + step[0], x : x + step[1]].astype(np.int64)
                if tile:
                    whole = np.zeros((*step, part.shape[2]), np.int64)
                    whole[: part.shape[0], : part.shape[1]] = part
                    part = whole
                if predictor:
                    part = np.diff(part, axis=1, prepend=0) & ((1 << bits) - 1)
                data = COMPRESSIONS[compression](packed(part, bits, order))
                segments.append(data.translate(REVERSED) if fill_order == 2 else data)
    extra = {266: (3, [fill_order])} if fill_order != 1 else {}
    if predictor:
        extra[317] = (3, [2])
    return tiff_of(segments, (width, height), channels, photometric, bits, compression, planar, tile, rows, order, big,
                   {**extra, **dict(tags)})


def tiff_of(segments, size, channels, photometric, bits=8, compression=1, planar=False, tile=None, rows=None,
            order="<", big=False, tags=()):
    """A TIFF of these strips or tiles; a tag whose value is None is left out."""
    word, offset_kind = ("Q", 16) if big else ("I", 4)
    offsets, at = [], 16 if big else 8
    for segment in segments:
        offsets.append(at)
        at += len(segment) + len(segment) % 2
    lengths = [len(segment) for segment in segments]
    fields = {
        256: (3, [size[0]]), 257: (3, [size[1]]), 258: (3, [bits] * channels), 259: (3, [compression]),
        262: (3, [photometric]), 277: (3, [channels]), 284: (3, [2 if planar else 1]),
    }
    if tile:
        fields |= {322: (3, [tile[0]]), 323: (3, [tile[1]]), 324: (offset_kind, offsets), 325: (offset_kind, lengths)}
    else:
        fields |= {273: (offset_kind, offsets), 278: (3, [rows or size[1]]), 279: (offset_kind, lengths)}
    fields = {tag: field for tag, field in (fields | dict(tags)).items() if field}
    word_bytes = 8 if big else 4
    tail_at = at + (8 if big else 2) + len(fields) * (20 if big else 12) + word_bytes
    entries, tail = b"", b""
    for tag, (kind, values) in sorted(fields.items()):
        body = struct.pack(f"{order}{len(values)}{ {1: 'B', 2: 'B', 3: 'H', 4: 'I', 6: 'b', 7: 'B', 16: 'Q'}[kind] }", *values)
        if len(body) > word_bytes:
            value = struct.pack(order + word, tail_at + len(tail))
            tail += body + b"\0" * (len(body) % 2)
        else:
            value = body.ljust(word_bytes, b"\0")
        entries += struct.pack(f"{order}HH{word}", tag, kind, len(values)) + value
    magic = b"II" if order == "<" else b"MM"
    head = struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else struct.pack(f"{order}HI", 42, at)
    body = b"".join(segment + b"\0" * (len(segment) % 2) for segment in segments)
    count = struct.pack(order + ("Q" if big else "H"), len(fields))
    return magic + head + body + count + entries + b"\0" * word_bytes + tail


def bmp_rows(pixels, bits):
    """Rows from the last to the first, padded to 4 bytes."""
    lines = (packed(row[None], bits) for row in pixels[::-1])
    return b"".join(line + b"\0" * (-len(line) % 4) for line in lines)


def bmp(size, bits, data, header=40, compression=0, colors=0, palette=b"", masks=(), offset=None, top_down=False):
    """A BMP of these rows or run lengths; `offset` replaces the stated offset of the pixels."""
    width, height = size
    masks = struct.pack(f"<{len(masks)}I", *masks)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        stated = -height if top_down else height
        info = struct.pack("<IIiHHIIIIII", header, width, stated, 1, bits, compression, 0, 2835, 2835, colors, 0)
        info = (info + masks).ljust(header, b"\0")
    at = 14 + len(info) + len(palette)
    head = struct.pack("<2sIII", b"BM", at + len(data), 0, at if offset is None else offset)
    return head + info + palette + data


def gif_frame(indices, palette=b"", corner=(0, 0), interlaced=False, data_bits=8, block=255):
    """An image block. Its own palette, if any, has a power of two colours."""
    height, width = indices.shape
    if interlaced:
        indices = np.concatenate([indices[start::step] for start, step in ((0, 8), (4, 8), (2, 4), (1, 2))])
    flags = 0x40 * interlaced
    if palette:
        flags |= 0x80 | (len(palette) // 3).bit_length() - 2
    codes = lzw(indices.astype(np.uint8).tobytes(), data_bits, "gif")
    blocks = b"".join(bytes([len(codes[i : i + block])]) + codes[i : i + block] for i in range(0, len(codes), block))
    return struct.pack("<cHHHHB", b",", *corner, width, height, flags) + palette + bytes([data_bits]) + blocks + b"\0"


def gif(screen, palette, *blocks):
    flags = 0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0
    return b"GIF89a" + struct.pack("<HHBBB", *screen, flags, 0, 0) + palette + b"".join(blocks) + b";"


def graphic_control(transparent=None, disposal=0):
    flags = disposal << 2 | (transparent is not None)
    return b"!\xf9\x04" + struct.pack("<BHB", flags, 5, transparent or 0) + b"\0"
