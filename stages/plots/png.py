"""PNG files whose bytes follow from the pixels alone.

Compression libraries (zlib, zlib-ng, ISA-L, whichever the machine's Python or Pillow was built
with) agree on how deflate is read, not on which bytes they write. So the part of deflate that
pictures need stands here, in integers: repeated pixels, in the fixed Huffman code.

Formats: PNG, third edition (W3C, 2025); deflate, RFC 1951; the zlib wrapper, RFC 1950.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Lengths count pixels of three bytes; deflate's own limits are 258 and 32768 bytes.
_LONGEST_RUN = 258 // 3
_WINDOW = 32768
_WIDEST = (_WINDOW - 1) // 3


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Return the PNG file (8-bit RGB, no metadata) of `pixels`, shape (height, width, 3).

    Raises:
        ValueError: another dtype or shape, no pixels, or rows too wide for deflate's window.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels: {pixels.dtype} {pixels.shape}, not uint8 (height, width, 3)")
    height, width, _ = pixels.shape
    if height < 1 or not 1 <= width <= _WIDEST:
        raise ValueError(f"pixels: {height} x {width}, allowed: 1 row or more of 1 to {_WIDEST}")
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", _compress(pixels))
        + _chunk(b"IEND", b"")
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _compress(pixels: NDArray[np.uint8]) -> bytes:
    """Return the picture's rows, each behind its filter type 0 (none), as one zlib stream."""
    height, width, _ = pixels.shape
    stride = 1 + 3 * width
    filtered = np.zeros((height, stride), np.uint8)
    filtered[:, 1:] = pixels.reshape(height, -1)

    tokens = ["1", "10"]  # the last block; fixed code
    tokens += _tokens(pixels, stride)
    tokens.append(_symbol(256))  # the block's end
    bits = np.frombuffer("".join(tokens).encode(), np.uint8) & 1
    deflated = np.packbits(bits, bitorder="little").tobytes()
    return b"\x78\x01" + deflated + struct.pack(">I", zlib.adler32(filtered.tobytes()))


def _tokens(pixels: NDArray[np.uint8], stride: int) -> list[str]:
    """Return the rows as literal pixels and references to pixels that stood before.

    Three places are looked at for each pixel: its left neighbour, the pixel above (both find
    flat areas and enlarged images) and the last place where the same three pixels began
    (the same letter, further left).
    """
    width = pixels.shape[1]
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), 2, 0)
    colours = red << 16 | green << 8 | blue
    like_left = np.zeros(colours.shape, bool)
    like_left[:, 1:] = colours[:, 1:] == colours[:, :-1]
    like_above = np.zeros(colours.shape, bool)
    like_above[1:] = colours[1:] == colours[:-1]

    rows = colours.tolist()
    tokens = []
    last_places: dict[tuple[int, ...], tuple[int, int]] = {}
    for y, (row, left_runs, above_runs) in enumerate(
        zip(rows, _runs(like_left), _runs(like_above), strict=True)
    ):
        tokens.append(_symbol(0))
        x = 0
        while x < width:
            run, distance = left_runs[x], 3
            if above_runs[x] > run:
                run, distance = above_runs[x], stride
            if run < 6 and x + 3 <= width:
                three = tuple(row[x : x + 3])
                last_y, last_x = last_places.get(three, (y, x))
                last_places[three] = y, x
                back = (y - last_y) * stride + 3 * (x - last_x)
                if 0 < back <= _WINDOW:
                    before = rows[last_y][last_x : last_x + _LONGEST_RUN]
                    equal = _equal(before, row[x : x + _LONGEST_RUN])
                    if equal > run:
                        run, distance = equal, back
            tokens.append(_match(3 * run, distance) if run else _literal(row[x]))
            x += max(run, 1)
    return tokens


def _runs(equal: NDArray[np.bool_]) -> list[list[int]]:
    """Return for each pixel how many from it on are equal, within its row and `_LONGEST_RUN`."""
    width = equal.shape[1]
    columns = np.arange(width)
    stop = np.where(equal, width, columns)
    stop = np.minimum.accumulate(stop[:, ::-1], axis=1)[:, ::-1]
    runs: list[list[int]] = np.minimum(stop - columns, _LONGEST_RUN).tolist()
    return runs


def _equal(first: list[int], second: list[int]) -> int:
    """Return how many leading pixels the two have in common."""
    count = 0
    for one, other in zip(first, second):  # noqa: B905  (the shorter one ends it)
        if one != other:
            break
        count += 1
    return count


@cache
def _literal(colour: int) -> str:
    return _symbol(colour >> 16) + _symbol(colour >> 8 & 255) + _symbol(colour & 255)


@cache
def _match(length: int, distance: int) -> str:
    """Return the bits that say: repeat `length` bytes from `distance` bytes back."""
    size, back = length - 3, distance - 1
    size_extra = max(size.bit_length() - 3, 0)
    back_extra = max(back.bit_length() - 2, 0)
    if length == 258:  # the one length outside the rule
        bits = _symbol(285)
    else:
        bits = _symbol(257 + 4 * size_extra + (size >> size_extra)) + _low_bits(size, size_extra)
    return bits + f"{2 * back_extra + (back >> back_extra):05b}" + _low_bits(back, back_extra)


def _symbol(value: int) -> str:
    """Return the bits of a byte (0 to 255), the block's end (256) or a length (257 to 285)."""
    if value < 144:
        return f"{0b00110000 + value:08b}"
    if value < 256:
        return f"{0b110010000 + value - 144:09b}"
    if value < 280:
        return f"{value - 256:07b}"
    return f"{0b11000000 + value - 280:08b}"


def _low_bits(value: int, count: int) -> str:
    """Return the `count` lowest bits of `value`, the lowest first."""
    return "".join(str(value >> place & 1) for place in range(count))
