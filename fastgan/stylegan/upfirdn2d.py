"""``upfirdn2d.upfirdn2d`` and what stands beside it, as StyleGAN's networks use them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.ops import upfirdn2d as ops
from fastgan.ops.upfirdn2d import Factor
from fastgan.stylegan.implementation import implementation


def setup_filter(
    f: Any,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Return a filter for the others, (height, width) or (taps): ``fastgan.ops.upfirdn2d.setup_filter``."""
    return ops.setup_filter(f, device, normalize, flip_filter, gain, separable)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 1,
    down: Factor = 1,
    padding: Factor = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Return images up-sampled, padded, filtered and down-sampled: ``fastgan.ops.upfirdn2d``."""
    with implementation(impl):
        return ops.upfirdn2d(x, f, up, down, padding, flip_filter, gain)


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: Factor = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Return images filtered, of the same size."""
    with implementation(impl):
        return ops.filter2d(x, f, padding, flip_filter, gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 2,
    padding: Factor = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Return images up-sampled and filtered."""
    with implementation(impl):
        return ops.upsample2d(x, f, up, padding, flip_filter, gain)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Factor = 2,
    padding: Factor = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Return images filtered and down-sampled."""
    with implementation(impl):
        return ops.downsample2d(x, f, down, padding, flip_filter, gain)
