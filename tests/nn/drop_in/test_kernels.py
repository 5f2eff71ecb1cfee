"""Converted models on the kernels: where they run, results are as near to fp64 as plain PyTorch's."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.benchmarks import drop_in_models
from fastgan.benchmarks.drop_in_models import STYLES, Style

here = drop_in_models.load(Path(__file__).with_name("pairs.py"))
code = drop_in_models.load(drop_in_models.FOLDER / "traps.py")
MARKS = [pytest.mark.interpret]
NAMED = {style.name: style for style in STYLES}
BOTH = [(name, letter) for name in NAMED for letter in "GD" if name != "stylegan2" or letter == "D"]
LEAN = {*itertools.product(("mlp", "ctgan"), "GD"), ("hifigan", "G"), ("sngan", "D"), ("stylegan2", "D")}
PASSES = [
    *(pytest.param("cpu", *case, marks=MARKS if case in LEAN else [*MARKS, pytest.mark.full]) for case in BOTH),
    *(pytest.param("cuda", *case, marks=pytest.mark.gpu) for case in BOTH),
]
PENALISED = {("ctgan", "D"), ("stylegan2", "D")}
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
PRODUCTS = ("linear_fwd", "conv_fwd", "conv_bwd_input")  # the last is a transposed convolution's way forward
ROWS = 2


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


class Products(TorchDispatchMode):
    """Counts the products of PyTorch's own layers that our kernels could do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("addmm", "mm") or (name == "convolution" and args[8] == 1)
        return func(*args, **(kwargs or {}))


def three(style: Style, letter: str, device: str) -> list[nn.Module]:
    """The network in fp64, in fp32, and in fp32 converted, from one seed."""
    built = []
    for dtype in (torch.float64, torch.float32, torch.float32):
        torch.manual_seed(0)
        built.append(here.lively(style.networks().named()[letter]).to(device, dtype))
    fastgan.convert(built[2])
    return built


@pytest.mark.parametrize("device, name, letter", PASSES, indirect=["device"])
def test_a_pass_on_the_kernels(device: str, name: str, letter: str, products: Counter[str]) -> None:
    style = NAMED[name]
    networks = three(style, letter, device)
    given = style.inputs(letter, style.draw(ROWS * (2 if style.pack > 1 else 1), torch.Generator().manual_seed(2)))
    given = [tensor.to(device) for tensor in given]
    results = [
        here.pass_over(net, here.to(given, dtype), (name, letter) in PENALISED)
        for net, dtype in zip(networks, (torch.float64, torch.float32, torch.float32), strict=True)
    ]
    here.near(*results)
    with torch.no_grad(), Products() as theirs:
        networks[1](*given)
    products.clear()
    with torch.no_grad():
        networks[2](*given)
    ours = sum(products[kind] for kind in PRODUCTS)
    assert ours >= 0.8 * theirs.count, f"{ours} of {theirs.count} products"


@pytest.mark.parametrize("name", NAMED)
def test_training_on_the_kernels(device: str, name: str, full: bool) -> None:
    if not full and device == "cpu" and name not in ("mlp", "ctgan"):
        pytest.skip("a large count: make test-all runs it (FASTGAN_TEST_ALL=1)")
    steps = 10 if full or device == "cuda" else 3
    wanted, theirs = here.trained(NAMED[name], torch.float64, steps, False, device)
    losses, mine = here.trained(NAMED[name], torch.float32, steps, True, device)
    tolerance = 1e-3 if device == "cpu" else 1e-2
    torch.testing.assert_close(losses.double(), wanted, rtol=tolerance, atol=tolerance)
    for letter, net in theirs.items():
        here.same_state(mine[letter], net, tolerance)


TRAPS = ["Shared", "OddNorms", "InPlaceSeenTwice", "ActivatesTwice", "KeepsFeatures", "CollectsByHooks"]
TRAPS += ["OverwritesAMask", "PreActivated", "Tokens", "OneChannel", "Conditioned"]


@pytest.mark.parametrize("name", TRAPS)
def test_traps_on_the_kernels(device: str, name: str) -> None:
    build = getattr(code, name)
    size = code.TRAPS[build]
    networks = []
    for dtype in (torch.float64, torch.float32, torch.float32):
        torch.manual_seed(0)
        networks.append(here.lively(build()).to(device, dtype))
    fastgan.convert(networks[2])
    (x,) = (tensor.to(device) for tensor in here.drawn((3, *size)))
    results = []
    for net in networks:
        dtype = next(net.parameters()).dtype
        results.append(here.pass_over(net, here.to([x], dtype)))
    here.near(*results)
