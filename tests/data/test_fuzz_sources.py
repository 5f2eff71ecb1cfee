"""Mutated tables, pictures and shards: a right answer or a reason in one line; nothing half-written."""

from __future__ import annotations

import functools
import io
import random
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastgan.data import csv_file, load
from fastgan.data.pixels import PictureError, decode
from fastgan.data.shards import contents
from fastgan.errors import UserError

Image = pytest.importorskip("PIL.Image")
SPECIAL = (
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b'"',
    b",",
    b"\n",
    b"1e999",
    b"inf",
    b"\xef\xbb\xbf",
    b"-1",
    b"0000",
)
Mutate = Callable[..., bytes]
TABLE = b'age,job,pay\n23,cook,1.5\n42,\'judge\',\n7,"a ""b"", c",-2e3\n23,,4\n'


@functools.cache
def pictures() -> dict[str, bytes]:
    """Tiny files of the usual formats and modes."""
    colours = np.random.default_rng(2).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    found = {}
    for format, mode, options in (
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"transparency": 3}),
        ("JPEG", "RGB", {"exif": exif()}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("TIFF", "L", {"compression": "tiff_lzw"}),
        ("PPM", "RGB", {}),
        ("TGA", "RGB", {"compression": "tga_rle"}),
    ):
        file = io.BytesIO()
        Image.fromarray(colours).convert(mode).save(file, format, **options)
        found[f"{format}-{mode}"] = file.getvalue()
    return found


def exif() -> Any:
    data = Image.Exif()
    data[0x0112] = 6
    return data


def shard() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("ä.png", pictures()["PNG-RGB"]),
            ("ä.cls", b"3"),
            ("b.jpg", b"x" * 99),
            ("b.json", b"{}"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def one_line(text: str) -> None:
    assert 0 < len(text) < 1000 and len(text.splitlines()) == 1, text


def test_csv(mutate: Mutate, full: bool) -> None:
    read = 0
    for seed in range(100_000 if full else 2_000):
        content = mutate(TABLE, random.Random(seed), SPECIAL)
        try:
            table, points = csv_file.read(io.BytesIO(content), "t.csv")
        except UserError as error:
            one_line(str(error))
            continue
        read += 1
        assert points.shape[1] == table.width and np.isfinite(points).all()
        cells = table.decode(torch.from_numpy(points))
        assert len(cells) == len(points) > 0 and len(cells[0]) == len(table.columns)
        exact = [at for at, column in enumerate(table.columns) if column.kind != "float"]
        again = table.decode(table.encode(cells))
        assert [[row[at] for at in exact] for row in again] == [[row[at] for at in exact] for row in cells]
    assert read > 300


@pytest.mark.filterwarnings("ignore")  # of Pillow's
def test_pictures(mutate: Mutate, full: bool) -> None:
    read = 0
    files = list(pictures().values())
    for seed in range(100_000 if full else 2_000):
        rng = random.Random(seed)
        try:
            pixels = decode(io.BytesIO(mutate(rng.choice(files), rng, SPECIAL)), rng.choice((None, 8)))
        except PictureError as error:
            one_line(str(error))
            continue
        read += 1
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size > 0
    assert read > 200


def test_shards(mutate: Mutate, full: bool) -> None:
    whole = shard()
    read = 0
    for seed in range(100_000 if full else 2_000):
        content = mutate(whole, random.Random(seed), SPECIAL)
        found = contents(io.BytesIO(content))
        for name, why in found.skipped:
            one_line(repr(name) + why)
        for sample in found.samples.values():
            if sample.picture is not None:
                read += 1
                assert 0 <= sample.picture.start <= sample.picture.start + sample.picture.size <= len(content)
    assert read > 1000


@pytest.mark.parametrize("kind", ["folder", "wds"])
def test_packs_are_whole_or_absent(bare: Path, mutate: Mutate, full: bool, kind: str) -> None:
    """The same through the packing: what is in the pack are the good pictures, unharmed."""
    good = pictures()["PNG-RGB"]
    original = decode(io.BytesIO(good), 8).transpose(2, 0, 1)
    (bare / "x").mkdir()
    (bare / "x" / "good.png").write_bytes(good)
    for seed in range(500 if full else 12):
        rng = random.Random(seed)
        bad = mutate(rng.choice(list(pictures().values())), rng, SPECIAL)
        (bare / "x" / "mutated.png").write_bytes(bad)
        (bare / "x.tar").write_bytes(mutate(shard(), rng, SPECIAL))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                data = load(f"{kind}:{bare / ('x' if kind == 'folder' else 'x.tar')}", image_size=8)
            except UserError as error:
                one_line(str(error))
                continue
        assert data.images.shape[2:] == (8, 8) and 1 <= len(data) <= 2
        assert kind == "wds" or np.array_equal(data.images[0].numpy(), original)
    assert len(list((bare / "cache" / "packed").glob("*/*"))) <= 1
