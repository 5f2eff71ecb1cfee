"""`digits`: 1,797 handwritten digits of 8x8 pixels that come with the package (see digits.md)."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import as_file, files

from fastgan.data import arrays
from fastgan.data.dataset import Dataset
from fastgan.errors import UserError


def load(name: str, path: str | None, *, split: str, allow_download: bool) -> Dataset:
    """Read the packaged file: (1797, 1, 8, 8) uint8, labels 0 ... 9."""
    if split != "train":
        raise UserError(f"the data set {name!r} has no {split} split: use split='train'")
    with as_file(files("fastgan.data") / "digits.npz") as file:
        dataset = arrays.load(name, str(file), split=split, allow_download=allow_download)
    return replace(
        dataset,
        name=name,
        license="CC BY 4.0",
        source="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository",
    )
