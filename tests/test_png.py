from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from PIL import Image

from stages.plots import png


def decoded(file: bytes):
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
        return np.asarray(picture)


def random_pixels(height, width, colours, seed=0):
    """Noise of a few colours, so that equal neighbours and repeated sequences both occur."""
    generator = np.random.default_rng(seed)
    palette = generator.integers(0, 256, (colours, 3), np.uint8)
    return palette[generator.integers(0, colours, (height, width))]


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 300),
    colours=st.sampled_from([1, 2, 3, 50, 5000]),
    enlarged=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_pillow_and_matplotlib_read_back_the_pixels(height, width, colours, enlarged, seed):
    pixels = random_pixels(height, width, colours, seed)
    pixels = pixels.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    file = png.encode(pixels)
    np.testing.assert_array_equal(decoded(file), pixels)
    np.testing.assert_array_equal(np.rint(imread(io.BytesIO(file)) * 255), pixels)


@pytest.mark.parametrize("width", [85, 86, 87, 172, 173, 10922])
def test_runs_about_and_beyond_the_longest_match_are_read_back(width):
    pixels = random_pixels(3, width, 1)
    pixels[1, -1] += 1
    np.testing.assert_array_equal(decoded(png.encode(pixels)), pixels)


def test_every_byte_value_is_read_back():
    pixels = np.arange(256 * 3, dtype=np.uint64).astype(np.uint8).reshape(16, 16, 3)
    np.testing.assert_array_equal(decoded(png.encode(pixels)), pixels)


def test_the_compressed_bytes_are_the_ones_worked_out_by_hand():
    # Red 1, green 2, blue 3, then the same pixel again. The row is filter type 0, the bytes 1 2 3
    # and "3 bytes from 3 back". In the fixed code a byte n is 0x30 + n in 8 bits, length 3 is
    # 0000001, distance 3 is 00010 and the end is 0000000; the block starts with 1, 10. Bits fill
    # each byte from its lowest bit up.
    bits = "110001100000011000100110010001100110000001000100000000"
    bits += "0" * (-len(bits) % 8)
    deflated = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    pixels = np.array([[[1, 2, 3], [1, 2, 3]]], np.uint8)
    assert deflated in png.encode(pixels)
    np.testing.assert_array_equal(decoded(png.encode(pixels)), pixels)


def test_the_file_holds_its_header_one_data_chunk_and_its_end_and_nothing_else():
    pixels = random_pixels(20, 30, 4)
    file = png.encode(pixels)
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = {}, file[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        name, content, checksum = rest[4:8], rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert struct.unpack(">I", checksum)[0] == zlib.crc32(name + content)
        chunks[name] = content
        rest = rest[12 + length :]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(20, 91)
    assert not rows[:, 0].any()
    np.testing.assert_array_equal(rows[:, 1:], pixels.reshape(20, 90))


def test_flat_areas_enlarged_images_and_repeated_letters_are_compressed():
    flat = random_pixels(500, 500, 1)
    assert len(png.encode(flat)) < flat.size / 100
    enlarged = random_pixels(28, 28, 5000).repeat(10, axis=0).repeat(10, axis=1)
    assert len(png.encode(enlarged)) < enlarged.size / 20
    letter = random_pixels(20, 15, 5000)
    text = np.concatenate([letter] * 20, axis=1)
    assert len(png.encode(text)) < text.size / 5


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
        np.zeros((1, 10923, 3), np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_what_is_no_rgb_picture_is_refused(pixels):
    with pytest.raises(ValueError, match=r"^pixels: "):
        png.encode(pixels)
