"""Checks an image file before native code decodes it.

The decoder behind it (stb_image) is fast and trusting: it inflates a PNG's data to whatever size it has, walks over all
pixels once for each scan of a JPEG, and takes missing data for black. So what is too large, endless or cut short is
found here, from headers and, for PNG, by inflating once without keeping anything.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import msgspec

PIXELS_MAX = 25_000_000
SIDE_MAX = 16_384
JPEG_SCANS_MAX = 100
_INFLATE_BYTES = 1 << 16
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour type: values per pixel, and the bit depths it may have.
_PNG_COLOURS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}
# Adam7: first column, first row, column step, row step of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class PictureError(ValueError):
    """The data is not an image that can be decoded; the message says why."""


class Picture(msgspec.Struct, frozen=True):
    """What an image file says it holds, in pixels."""

    kind: str
    width: int
    height: int


def check(data: bytes) -> Picture:
    """The size of a complete PNG, JPEG, GIF or BMP file. Raises PictureError."""
    try:
        if data.startswith(_PNG_SIGNATURE):
            return _png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif(data)
        if data.startswith(b"BM"):
            return _bmp(data)
    except (struct.error, IndexError):
        raise PictureError("the image is cut short") from None
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        raise PictureError("WebP is not supported; send PNG, JPEG, GIF or BMP")
    raise PictureError("this is not an image; send PNG, JPEG, GIF or BMP")


def _sized(kind: str, width: int, height: int) -> Picture:
    if width <= 0 or height <= 0:
        raise PictureError("the image is empty")
    if max(width, height) > SIDE_MAX or width * height > PIXELS_MAX:
        raise PictureError(
            f"the image of {width} x {height} pixels is too large; at most {PIXELS_MAX // 1_000_000} million pixels "
            f"and {SIDE_MAX} on a side are possible"
        )
    return Picture(kind, width, height)


def _png(data: bytes) -> Picture:
    chunks = _png_chunks(data)
    kind, header = next(chunks)
    if kind != b"IHDR":
        raise PictureError("the PNG does not begin with its header")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", header)
    picture = _sized("png", width, height)
    values, depths = _PNG_COLOURS.get(colour, (0, ()))
    if depth not in depths or compression or filtering or interlace > 1:
        raise PictureError("the PNG has an impossible header")
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes if x < width and y < height]
    wanted = sum((1 + -(-columns * values * depth // 8)) * rows for columns, rows in sizes)
    inflated = _inflate((body for kind, body in chunks if kind == b"IDAT"), wanted)
    if inflated < wanted:
        raise PictureError("the image is cut short")
    return picture


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Each chunk's type and body up to the end chunk, which must be there."""
    view, at = memoryview(data), len(_PNG_SIGNATURE)
    while True:
        size, kind = struct.unpack_from(">I4s", view, at)
        if at + 12 + size > len(view):
            raise PictureError("the image is cut short")
        yield kind, view[at + 8 : at + 8 + size]
        if kind == b"IEND":
            return
        at += 12 + size


def _inflate(bodies: Iterator[memoryview], size_max: int) -> int:
    """How many bytes the bodies inflate to, which are not kept; raises as soon as there are too many."""
    inflater, total = zlib.decompressobj(), 0
    try:
        for body in bodies:
            left: bytes | memoryview = body
            while left and not inflater.eof:
                total += len(inflater.decompress(left, _INFLATE_BYTES))
                left = inflater.unconsumed_tail
                if total > size_max:
                    raise PictureError("the PNG holds more data than its size calls for")
    except zlib.error:
        raise PictureError("the PNG's data is damaged") from None
    return total


def _jpeg(data: bytes) -> Picture:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise PictureError("the JPEG is damaged")
        while data[at + 1] == 0xFF:
            at += 1
        marker, (size,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            break
        if marker in (0xD9, 0xDA) or size < 2:
            raise PictureError("the JPEG is damaged")
        at += 2 + size
    if marker > 0xC2:
        raise PictureError("this kind of JPEG is not supported; send a baseline or progressive one")
    height, width = struct.unpack_from(">HH", data, at + 5)
    picture = _sized("jpeg", width, height)
    scan = data.find(b"\xff\xda", at)
    if scan < 0 or data.rfind(b"\xff\xd9") < scan:
        raise PictureError("the image is cut short")
    if data.count(b"\xff\xda") > JPEG_SCANS_MAX:
        raise PictureError("the JPEG has too many scans")
    return picture


def _gif(data: bytes) -> Picture:
    """Walks the blocks up to the end of the first frame, which is the one that is shown."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    picture = _sized("gif", width, height)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at] == 0x21:
        at = _gif_blocks(data, at + 2)
    if data[at] != 0x2C:
        raise PictureError("the GIF has no image")
    flags = data[at + 9]
    _gif_blocks(data, at + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
    return picture


def _gif_blocks(data: bytes, at: int) -> int:
    """Where the run of sub-blocks at `at` ends."""
    while size := data[at]:
        at += 1 + size
    return at + 1


def _bmp(data: bytes) -> Picture:
    start, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    picture = _sized("bmp", width, abs(height))
    if start + (width * bits + 31) // 32 * 4 * picture.height > len(data):
        raise PictureError("the image is cut short")
    return picture
