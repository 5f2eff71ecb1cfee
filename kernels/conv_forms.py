"""The compiled forms of the convolution kernels that the dispatcher chooses for the networks that people train.

DCGAN at 64 and 128, WGAN-GP's and SNGAN's networks at 32, pix2pix's, and HiFi-GAN's generator. Kernels are not
specialised to a geometry, so a layer's kernel, stride, dilation and size tell in the strides of its operands at most;
what is left is which way it leads, channels, layouts, and what stands beside the product. bf16 goes through all of it,
TF32, fp16 and IEEE fp32 through the first so many, each in every tile that the heuristic may choose for such sizes at a
batch of 64; bf16 and the first in TF32 also in the one that it does choose at batches from 16 to 1,024. Programs share
a tile of a weight gradient always, of the rest in the cases that say so and where that is chosen; there they work alone
as well, and the gradient of 16-bit weights is formed in 16 bits too, not only in fp32. Weights of 16 bits of few
channels lie channels_last, as an optimiser's shadow does, and contiguous.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fastgan.kernels.conv import NOTHING, fwd_launch, fwd_problem
from fastgan.kernels.conv_bwd_input import bwd_input_launch, bwd_input_problem
from fastgan.kernels.conv_bwd_weight import bwd_weight_launch, bwd_weight_problem
from fastgan.kernels.conv_map import GATHER, PHASE, SPREAD, Axis, Geometry
from fastgan.kernels.conv_product import candidates_for, packed, weight_tile
from fastgan.kernels.launch import Launch
from fastgan.kernels.linear_bwd_input import Below
from fastgan.kernels.norm import Correction, Norm, NormGradients, Statistics
from fastgan.kernels.problem import useful
from fastgan.kernels.tile import Config, Problem, Target, candidates
from fastgan.kernels.variant import Variant


@dataclass(frozen=True)
class _Case:
    """A layer between an image of C channels and a grid of K, with operands that make compiled forms of their own."""

    activation: str = "leaky_relu"
    C: int = 256
    K: int = 256
    transposed: bool = False  # from the grid to the image, with statistics of one group; else of two
    kernel: int = 4
    stride: int = 2
    image: int = 32  # positions along each axis
    up: int = 1
    signal: bool = False  # of one dimension
    x: str = "first"  # activations: contiguous where channels are few, else channels_last; "last": always; "all": never
    w: str = "first"  # weights, in the same words; but their gradient is channels_last only where they say "last"
    bias: bool = True
    before: str = "none"  # the activation that the input goes through
    below: str = "none"  # the activation that the input came out of, where its gradient goes on through it
    norm: str = ""  # "in": the input is a raw output; "out": the output's statistics are wanted; "both"
    split: bool = False  # by programs that share a tile, and by programs that do not

    def __str__(self) -> str:
        told = (f"{field.name}={getattr(self, field.name)}" for field in fields(self)[1:])
        usual = {f"{field.name}={field.default}" for field in fields(self)} | {"split=True"}
        return " ".join([self.activation, *(text for text in told if text not in usual)])


_CASES = (
    *(_Case("none", transposed=way, w="last", split=True) for way in (False, True)),
    _Case("none", norm="both", below="leaky_relu", bias=False, split=True),  # a critic's
    _Case("none", transposed=True, norm="both", below="relu", bias=False, split=True),  # a generator's
    _Case(C=3, K=64, bias=False),
    _Case("tanh", C=3, K=64, transposed=True, norm="in", below="relu", bias=False),
    _Case("none", C=512, K=100, transposed=True, stride=1, image=4, norm="out", bias=False, split=True),
    _Case("sigmoid", C=512, K=1, stride=1, image=4, norm="in", below="leaky_relu", bias=False, split=True),
    *(_Case("none", transposed=way) for way in (False, True)),
    _Case("none", transposed=True, kernel=5, norm="both", below="relu", bias=False, split=True),
    _Case(kernel=5, below="leaky_relu", split=True),
    *(_Case("none", C=C, K=2 * C, norm="out", below="leaky_relu", bias=False) for C in (64, 128)),
    *(_Case("none", C=C, K=64, norm="both", below="leaky_relu", bias=False) for C in (64, 128)),
    _Case("none", C=64, transposed=True, norm="both", below="relu", bias=False),
    *(_Case(C=3, K=128, kernel=5, x=x, w=x, split=True) for x in ("first", "last")),
    _Case("tanh", C=3, kernel=5, transposed=True, norm="in", below="relu"),
    *(_Case("none", C=3, kernel=kernel, stride=1) for kernel in (1, 3)),
    *(_Case("none", kernel=3, stride=1, up=up, norm="both", below="relu") for up in (1, 2)),
    *(_Case("none", kernel=1, stride=1, up=up) for up in (1, 2)),
    _Case("tanh", K=3, kernel=3, stride=1, norm="in", below="relu"),
    _Case("none", kernel=3, stride=1, before="relu", split=True),
    *(_Case("none", transposed=way, norm="out", before="relu", split=True) for way in (False, True)),  # a U-Net's
    _Case("none", kernel=3, stride=1, up=2, norm="out", before="relu"),  # a residual block's
    *(_Case(kernel=3, stride=1, signal=signal, before="leaky_relu") for signal in (False, True)),
    *(_Case("none", C=C, K=C, kernel=3, stride=1, signal=True, before="leaky_relu") for C in (32, 64, 256)),
    _Case("none", kernel=7, stride=1, image=2048, signal=True, before="leaky_relu"),
    *(_Case("none", C=C, K=2 * C, transposed=True, signal=True, before="leaky_relu") for C in (32, 64)),
    _Case("none", transposed=True, kernel=16, stride=8, signal=True, before="leaky_relu", split=True),
    _Case("none", C=80, K=512, kernel=7, stride=1, signal=True, split=True),
    _Case("tanh", C=32, K=1, kernel=7, stride=1, signal=True, before="leaky_relu"),
    _Case("none", transposed=True, x="all", w="all", norm="both", below="relu", bias=False),
    _Case("none", kernel=3, stride=1, image=8, x="all", w="all"),
)
_ALONE = [replace(case, split=False) for case in _CASES]
_FORMS = (
    (torch.bfloat16, "tf32", _CASES),
    (torch.float32, "tf32", [*_CASES[:1], *_ALONE[1:6]]),
    (torch.float16, "tf32", _ALONE[:2]),
    (torch.float32, "ieee", _ALONE[:3]),
)
_CHOSEN = ((torch.bfloat16, "bfloat16", _CASES), (torch.float32, "tf32", _CASES[:8]))
_BATCHES = (16, 64, 128, 1024)


def _meta(layout: str, dtype: torch.dtype, *size: int, few: bool = False) -> Tensor:
    """Build an operand without storage."""
    order = torch.channels_last if layout == "last" or not (few or layout == "all") else torch.contiguous_format
    return torch.empty(size, dtype=dtype, device="meta", memory_format=order)


def _vector(*size: int) -> Tensor:
    return torch.empty(size, device="meta")


def _geometry(case: _Case) -> Geometry:
    padding = 0 if case.image == case.kernel else (case.kernel - case.stride + 1) // 2
    grid = (case.image * case.up + 2 * padding - case.kernel) // case.stride + 1
    axis = Axis(case.image, grid, case.kernel, case.stride, padding, 1, case.up)
    return Geometry(Axis(1, 1, 1) if case.signal else axis, axis).lone()


def _beside(case: _Case, gx: Tensor, outputs: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what stands beside the products: forward, of the input's gradient gx, and of the weights'."""
    channels, groups = gx.shape[1], 1 if case.transposed else 2
    forward: dict[str, Any] = {}
    inward: dict[str, Any] = {}
    onto: dict[str, Any] = {}
    if case.before != "none":
        forward["before"] = onto["before"] = case.before, 0.1
        inward["below"] = Below(gx, case.before, 0.1)
    if case.norm in ("in", "both"):
        vectors = (_vector(groups, channels), _vector(groups, channels), _vector(channels), _vector(channels))
        forward["norm"] = inward["norm"] = onto["norm"] = Norm(*vectors, 1e-5, case.below, 0.2)
        inward["to"] = NormGradients(*vectors)
    elif case.below != "none":
        inward["below"] = Below(gx, case.below, 0.2)
    if case.norm in ("out", "both"):
        mean, of = _vector(groups, outputs), _vector(outputs)
        forward["statistics"] = Statistics(mean, mean, of, of, None, 0.1)
        inward["correction"] = onto["correction"] = Correction(mean, mean, mean)
    return forward, inward, onto


def _launches(case: _Case, dtype: torch.dtype, target: Target, batch: int = 64, swept: bool = True) -> Iterator[Launch]:
    """Yield what is launched for such operands, in each tile that may be chosen, or in the one that is."""
    geometry, how = _geometry(case), (case.activation, 0.2, target)
    ahead, back = (PHASE, GATHER) if case.transposed else (GATHER, PHASE if case.up == 1 else SPREAD)
    image = _meta(case.x, dtype, batch, case.C, *geometry.out(PHASE), few=packed(case.C))
    grid = _meta(case.x, dtype, batch, case.K, *geometry.out(GATHER), few=packed(case.K))
    size = case.K, case.C, geometry.h.kernel, geometry.w.kernel
    few = packed(min(size[:2]))
    laid = dict.fromkeys((case.w, "last") if few and dtype != torch.float32 else (case.w,))
    ws = [_meta(order, dtype, *size, few=few) for order in laid]
    x, y = (grid, image) if case.transposed else (image, grid)
    gx = _meta("last", dtype, *x.shape)
    bias = torch.empty(y.shape[1], dtype=dtype, device="meta") if case.bias else None
    saved = y if case.activation != "none" or case.norm in ("out", "both") else None
    forward, inward, onto = _beside(case, gx, y.shape[1])
    for w in ws:
        around = forward.get("norm"), forward.get("statistics"), forward.get("before", NOTHING)
        asked = fwd_problem(x, w, geometry, ahead, target, *around)
        for tile in _tiles(case, asked, candidates_for(asked, x.shape[1])) if swept else [None]:
            yield fwd_launch(x, w, bias, y, geometry, ahead, *how, **forward, config=tile)
    beside = {name: thing for name, thing in inward.items() if name != "to"}
    raw = gx if "norm" in inward else None
    for w in ws:
        asked = bwd_input_problem(y, saved, w, geometry, back, target, **beside)
        for tile in _tiles(case, asked, candidates_for(asked, y.shape[1])) if swept else [None]:
            yield bwd_input_launch(y, saved, w, gx, raw, geometry, back, *how, **inward, config=tile)
    asked = bwd_weight_problem(y, saved, x, ws[0], geometry, target, **onto)
    tiles = dict.fromkeys(weight_tile(tile, case.C) for tile in candidates(asked))
    for kind in dict.fromkeys((torch.float32, dtype) if case.split else (torch.float32,)):
        gw = _meta(case.w, kind, *size, few=True)
        gb = None if case.transposed or bias is None else bias.to(kind)
        for tile in _tiles(case, asked, tiles, shared=True) if swept else [None]:
            yield bwd_weight_launch(y, saved, x, gw, gb, geometry, case.transposed, *how, **onto, config=tile)


def _asked(arch: int) -> Iterator[tuple[str, _Case, Launch]]:
    """Yield launches with what they multiply: in each tile that may be chosen, then in the one that is."""
    for dtype, precision, cases in _FORMS:
        kind = precision if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        for case in cases:
            yield from ((kind, case, launch) for launch in _launches(case, dtype, Target(arch, precision)))
    for dtype, kind, cases in _CHOSEN:
        for case, batch in product(cases, _BATCHES):
            launches = _launches(case, dtype, Target(arch, "tf32"), batch, swept=False)
            yield from ((kind, case, launch) for launch in launches)


def _tiles(case: _Case, asked: Problem, tiles: Iterable[Config], shared: bool = False) -> Iterator[Config]:
    """Yield the tiles that may be chosen for such sizes; however many programs share one, it is one form."""
    kept = (tile for tile in tiles if case.split or shared == (tile.split > 1))
    yield from (tile for tile in kept if useful(asked, tile))


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that the dispatcher can choose on compute capability arch / 10, each once."""
    seen = set()
    for kind, case, launch in _asked(arch):
        rows = 0 if kind == "ieee" else launch.config.rows
        variant = launch.variant("conv", f"{kind} {case} {launch.config}", rows)
        form = repr(
            (variant.kernel, variant.signature, variant.constexprs, variant.divisible, replace(launch.config, split=1))
        )
        if form not in seen:
            seen.add(form)
            yield variant
