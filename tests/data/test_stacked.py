"""Stacked digits: each image is three of the single ones, and its label reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.data import load
from fastgan.errors import UserError


def test_each_channel_is_a_digit_of_the_label() -> None:
    data, single = load("stacked-digits"), load("digits")
    assert data.images.dtype == torch.uint8 and data.images.shape == (32_000, 3, 8, 8)
    assert data.labels is not None and single.labels is not None
    known = {image.numpy().tobytes(): int(label) for image, label in zip(single.images, single.labels, strict=True)}
    for image, label in zip(data.images[:500], data.labels[:500], strict=True):
        read = [known[channel.contiguous().numpy().tobytes()] for channel in image]
        assert f"{int(label):03}" == "".join(map(str, read)) == data.classes[label]
    counts = data.labels.bincount(minlength=1000)
    assert len(counts) == 1000 and counts.min() > 0  # about 32 each
    assert torch.equal(load("stacked-digits").images, data.images)


def test_of_a_folder_padded_and_what_is_refused(tmp_path: Path) -> None:
    """Three images of two digits stand for MNIST."""
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    for stem in ("train", "t10k"):
        header = b"\0\0\x08\x03" + b"".join(side.to_bytes(4, "big") for side in images.shape)
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x03" + bytes([4, 0, 4]))
    data = load(f"stacked-mnist:{tmp_path}", split="test", image_size=32)
    assert data.images.shape == (26_000, 3, 32, 32) and data.labels is not None
    assert set(data.labels.tolist()) == {int(f"{a}{b}{c}") for a in "04" for b in "04" for c in "04"}
    assert data.images[:, :, :2].sum() == 0 and data.images[0, 0, 2:30, 2:30].numpy().tobytes() in {
        image.tobytes() for image in images
    }
    with pytest.raises(UserError, match="no test split"):
        load("stacked-digits", split="test")
    with pytest.raises(UserError, match="8x8 and the model wants 32x32"):
        load("stacked-digits", image_size=32)
