"""Image files, whole, hostile and broken."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.llama_cpp import pictures
from adapters.llama_cpp.pictures import Picture, PictureError
from tests.models.random_vision import png, png_of


def jpeg(width: int = 8, height: int = 8, *, kind: int = 0xC0, scans: int = 1) -> bytes:
    """The frame of a JPEG file; what is between its markers is not looked at."""
    start = b"\xff\xd8\xff\xe0\x00\x04JF"
    frame = b"\xff" + bytes([kind]) + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    return start + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00data" * scans + b"\xff\xd9"


def gif(width: int = 2, height: int = 2) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    extension = b"\x21\xf9\x04\x00\x00\x00\x00\x00"
    return head + extension + b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00\x3b"


def bmp(width: int = 3, height: int = 2) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + header + bytes((width * 24 + 31) // 32 * 4 * abs(height))


def interlaced(width: int, height: int, size: int) -> bytes:
    """An interlaced PNG of one byte per pixel whose data inflates to `size` bytes."""
    data = bytearray(png_of(width, height, zlib.compress(bytes(size))))
    data[25], data[28] = 0, 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "picture"),
    [
        (png(31, 17), Picture("png", 31, 17)),
        (interlaced(1, 1, 2), Picture("png", 1, 1)),
        (interlaced(9, 9, 81 + 19), Picture("png", 9, 9)),
        (jpeg(640, 480), Picture("jpeg", 640, 480)),
        (jpeg(640, 480, kind=0xC2, scans=12), Picture("jpeg", 640, 480)),
        (gif(), Picture("gif", 2, 2)),
        (bmp(), Picture("bmp", 3, 2)),
        (bmp(3, -2), Picture("bmp", 3, 2)),
    ],
    ids=["png", "interlaced-1", "interlaced-9", "jpeg", "progressive", "gif", "bmp", "bmp-top-down"],
)
def test_whole_files_are_measured(data: bytes, picture: Picture) -> None:
    assert pictures.check(data) == picture


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"%PDF-1.7 " + bytes(100), "not an image"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "WebP"),
        (png_of(30_000, 30_000, b""), "too large"),
        (png_of(20_000, 1, b""), "too large"),
        (png_of(0, 5, b""), "empty"),
        (png_of(8, 8, zlib.compress(bytes(50_000_000))), "more data"),
        (png_of(8, 8, zlib.compress(bytes(10))), "cut short"),
        (png_of(8, 8, b"no zlib"), "damaged"),
        (png(64, 64).replace(b"IHDR", b"IHDX"), "header"),
        (png(64, 64)[:24] + b"\x07" + png(64, 64)[25:], "impossible"),
        (jpeg(65_000, 65_000), "too large"),
        (jpeg(kind=0xC9), "not supported"),
        (jpeg(scans=1000), "too many scans"),
        (gif(60_000, 60_000), "too large"),
        (b"BM" + bytes(16) + struct.pack("<ii", 1 << 20, 1) + bytes(40), "large"),
    ],
)
def test_hostile_files_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        pictures.check(data)


@pytest.mark.parametrize("data", [png(40, 30), jpeg(), bmp()], ids=["png", "jpeg", "bmp"])
def test_a_file_cut_anywhere_is_refused(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(PictureError):
            pictures.check(data[:size])


@given(st.sampled_from([png(9, 9), jpeg(), gif(), bmp()]), st.data())
def test_any_damage_is_measured_or_refused(data: bytes, chance: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(chance.draw(st.integers(1, 4))):
        damaged[chance.draw(st.integers(0, len(data) - 1))] = chance.draw(st.integers(0, 255))
    try:
        picture = pictures.check(bytes(damaged))
    except PictureError:
        return
    assert picture.width * picture.height <= pictures.PIXELS_MAX
