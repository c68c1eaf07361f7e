"""Give `predict` hundreds of bad and odd image files: `python -m tests.checks.odd_images [COUNT]`.

It fails if one of them brings a traceback, more or less than a line, or none of its own.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.checks.small_project import ROOT, environment

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F",
         "I;16")  # fmt: skip
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "SGI",
           "JPEG2000", "MSP", "XBM", "DIB", "PDF", "EPS")  # fmt: skip
SIZES = ((1, 1), (1, 300), (300, 1), (2, 2), (28, 28), (97, 61), (900, 40))


def drawn(mode: str, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Return an image of a mode: a stroke, noise, one colour or nothing at all."""
    width, height = size
    grey = np.full((height, width), generator.integers(0, 256), np.uint8)
    kind = generator.integers(0, 4)
    if kind == 0:
        grey = generator.integers(0, 256, (height, width), np.uint8)
    elif kind < 3:
        grey[height // 4 : 3 * height // 4 + 1, width // 2 : width // 2 + width // 8 + 1] ^= 255
    image = Image.fromarray(grey)
    if mode in ("RGBA", "LA", "PA"):
        image.putalpha(Image.fromarray(255 - grey))
    if mode == "LAB":
        return Image.merge("LAB", [image] * 3)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "F":
        odd = generator.choice([np.nan, np.inf, -1e30, 0.5])
        return Image.fromarray(np.where(grey > 128, odd, grey).astype(np.float32))
    return image.convert("RGBA").convert("P").convert("PA") if mode == "PA" else image.convert(mode)


def whole(generator: np.random.Generator) -> bytes:
    """Return a file of a random format, mode and size."""
    while True:
        mode, kind = str(generator.choice(MODES)), str(generator.choice(FORMATS))
        size = SIZES[generator.integers(len(SIZES))]
        exif = Image.Exif()
        exif[0x0112] = int(generator.integers(0, 10))
        file = io.BytesIO()
        options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}
        try:
            drawn(mode, size, generator).save(file, kind, **options)
        except (OSError, ValueError, KeyError, SystemError):
            continue  # the format has no such mode or size, or this Pillow lacks it
        return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, content: bytes = b"") -> bytes:
    """Return a PNG file whose header claims anything."""

    def chunk(name: bytes, inside: bytes) -> bytes:
        return struct.pack(">I", len(inside)) + name + inside + struct.pack(
            ">I", zlib.crc32(name + inside)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content))
        + chunk(b"IEND", b"")
    )  # fmt: skip


FIXED = (
    b"", b"\0", b"GIF89a", b"\xff\xd8\xff", b"BM", b"II*\0", b"%!PS\n", b"P6\n", b"P6\n9 9\n255\n",
    b"P5 99999999 99999999 255\n", b"#!/bin/sh\necho harm\n", "7".encode("utf-16"),
    png(60_000, 60_000, 8, 2), png(10_000, 10_000, 8, 6), png(0, 0, 8, 0), png(2**31 - 1, 1, 8, 0),
    png(5, 5, 3, 9), png(300, 300, 16, 0), png(28, 28, 8, 0, bytes(28 * 29)),
)  # fmt: skip
"""Empty files, headers alone, a text and bombs."""


def odd_files(folder: Path, count: int, seed: int) -> list[Path]:
    """Write files: a third whole, the rest cut, with flipped bits or with a changed piece."""
    generator = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        content = FIXED[number] if number < len(FIXED) else whole(generator)
        damage = generator.integers(0, 6) if number >= len(FIXED) else 0
        damaged = bytearray(content)
        if damage in (2, 3):
            damaged = damaged[: generator.integers(0, len(damaged))]
        elif damage == 4:
            for place in generator.integers(0, 8 * len(damaged), 4):
                damaged[place // 8] ^= 1 << place % 8
        elif damage == 5:
            start = int(generator.integers(0, min(len(damaged), 200)))
            damaged[start : start + 4] = generator.bytes(int(generator.integers(0, 8)))
        paths.append(folder / f"{number}.image")
        paths[-1].write_bytes(damaged)
    return paths


def outcome(paths: list[Path], folder: Path = ROOT) -> tuple[int, int]:
    """Run `predict` over all the files; return how many it read and how many it refused.

    Raises:
        AssertionError: it printed anything but a JSON list and a line for each file refused.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tools.predict", "--json", "--", *map(str, paths)],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode in (0, 1), done.stderr
    lines = done.stderr.splitlines()
    found = json.loads(done.stdout)
    assert [entry["file"] for entry in found] == list(map(str, paths))
    refused = [entry for entry in found if "error" in entry]
    assert lines == [f"error: {entry['error']}" for entry in refused]
    assert all(entry["error"].startswith(f"{entry['file']}: ") for entry in refused)
    assert done.returncode == bool(refused)
    return len(found) - len(refused), len(refused)


def main() -> None:
    """Print how many files were read and refused."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as folder:
        read, refused = outcome(odd_files(Path(folder), count, seed=1))
    print(f"{count} files: {read} read, {refused} refused with a line each, 0 tracebacks")


if __name__ == "__main__":
    main()
