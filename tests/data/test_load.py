"""`load` by name: what is built in, what the names accept, and what they say when asked for something else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fastgan.data import load, names
from fastgan.errors import UserError


def test_names() -> None:
    plain = [
        "csv",
        "digits",
        "fashion-mnist",
        "folder",
        "grid25",
        "mnist",
        "npy",
        "npz",
        "patterns8",
        "people",
        "ring8",
    ]
    assert names() == [*plain, "stacked-digits", "stacked-mnist", "wds"]


def test_digits() -> None:
    data = load("digits")
    assert len(data) == 1797
    assert data.sample_shape == (1, 8, 8)
    assert data.images.dtype == torch.uint8
    assert data.images.is_contiguous()
    assert data.classes == tuple("0123456789")
    assert data.labels is not None
    assert torch.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert "CC BY 4.0" in data.license and "Alpaydin" in data.source


def test_digits_keep_the_original_counts() -> None:
    data = load("digits")
    first = [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]  # the first two rows of the original's first image
    counts = (data.images.double() * 16 / 255).round()
    assert counts[0].flatten()[:16].tolist() == first
    assert torch.equal((counts * 255 / 16).round().to(torch.uint8), data.images)


def test_digits_look_like_digits() -> None:
    """The mean image of a class classifies 9 of 10: pixels, their order and the labels belong together."""
    data = load("digits")
    assert data.labels is not None
    pixels = data.batch(torch.arange(len(data))).flatten(1)
    means = torch.stack([pixels[data.labels == digit].mean(0) for digit in range(10)])
    assert (torch.cdist(pixels, means).argmin(1) == data.labels).float().mean() > 0.88


@pytest.mark.parametrize("name, modes, sigma", [("ring8", 8, 0.01), ("grid25", 25, 0.05)])
def test_mixtures(name: str, modes: int, sigma: float) -> None:
    data, again = load(name), load(name)
    assert torch.equal(data.images, again.images) and not torch.equal(data.images, load(name, split="test").images)
    assert data.images.shape == (100_000, 2) and data.images.dtype == torch.float32
    assert data.modes is not None and data.labels is not None
    assert data.modes.sigma == sigma and data.modes.centres.shape == (modes, 2)
    assert len(data.classes) == modes

    offsets = data.images - data.modes.centres[data.labels]
    assert offsets.std(0).sub(sigma).abs().max() < 0.02 * sigma
    assert offsets.mean(0).abs().max() < 0.02 * sigma
    share = torch.bincount(data.labels, minlength=modes) / len(data)
    assert (share * modes - 1).abs().max() < 0.08
    index = torch.tensor([0, 99_999])
    assert torch.equal(data.batch(index), data.images[index])


def test_centres() -> None:
    ring, grid = load("ring8").modes, load("grid25").modes
    assert ring is not None and grid is not None
    assert torch.allclose(ring.centres.norm(dim=1), torch.ones(8))
    assert torch.pdist(ring.centres).min() > 0.76  # 2 sin(pi / 8) = .765
    assert {tuple(c) for c in grid.centres.tolist()} == {(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)}


def test_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    load("ring8")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "spec, options, message",
    [
        ("mnits", {}, "unknown data set 'mnits': did you mean 'mnist'?"),
        ("", {}, "unknown data set ''"),
        ("pictures.npz", {}, "say npz:pictures.npz"),
        ("digits:here", {}, "takes no path: say 'digits'"),
        ("ring8:", {}, "takes no path"),
        ("npz", {}, "names no path: say npz:"),
        ("npy:", {}, "names no path: say npy:"),
        ("mnist:", {}, "names no path: say mnist:"),
        ("digits", {"split": "validation"}, "unknown split 'validation'"),
        ("digits", {"split": "test"}, "has no test split"),
        ("digits", {"image_size": 16}, "has images of 8x8 and the model wants 16x16: set image_size=8"),
        ("digits", {"channels": 3}, "has 1 channel and the model wants 3: set channels=1"),
        ("ring8", {"image_size": 28}, "holds points of 2 numbers and the model wants images"),
    ],
)
def test_mistakes(spec: str, options: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(spec, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_no_cuda_device() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        load("digits", device="cuda")


def test_import_is_light() -> None:
    heavy = "tqdm, PIL, matplotlib, yaml, zipfile, urllib.request, fastgan.data.mnist, fastgan.data.arrays"
    probe = (
        "import sys, torch, numpy; before = set(sys.modules); import fastgan.data; "
        f"print(sorted(set({[m.strip() for m in heavy.split(',')]}) & (set(sys.modules) - before)))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=env)
    assert result.stdout.strip() == "[]"
