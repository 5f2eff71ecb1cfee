"""What is audited is what is launched."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastgan.kernels.variant import Variant
from fastgan.ops.activation import ACTIVATIONS

pytest.importorskip("triton")
from fastgan.kernels.launch import Launch
from fastgan.kernels.linear import fwd_launch
from fastgan.kernels.linear_bwd_input import bwd_input_launch
from fastgan.kernels.linear_bwd_weight import bwd_weight_launch
from fastgan.kernels.linear_forms import variants
from fastgan.kernels.tile import Target

CARDS = (80, 86, 89, 90, 100, 120)


def form(variant: Variant) -> str:
    facts = sorted(variant.signature.items()), sorted(variant.constexprs.items(), key=str), sorted(variant.divisible)
    return repr((variant.kernel, facts, variant.num_warps, variant.num_stages, variant.max_registers))


SIZES = ((64, 512, 1024), (8192, 1024, 512), (100, 512, 1024), (128, 1, 256), (4096, 255, 512), (100, 255, 511))


@pytest.mark.parametrize("arch", CARDS)
def test_what_a_network_launches_is_among_the_variants(arch: int) -> None:
    """Contiguous operands of any multiple of 16, a logit head, an odd size: each in the tile that is chosen for it."""
    known = {form(variant) for variant in variants(arch)}
    assert len(known) == len(list(variants(arch)))
    for dtype, (M, N, K), activation in itertools.product((torch.bfloat16, torch.float32), SIZES, ACTIVATIONS):
        if activation != "leaky_relu" and (N % 16 or K % 16):
            continue  # odd sizes are listed with leaky_relu alone
        for launch in launches(M, N, K, dtype, activation, Target(arch, "tf32")):
            if launch.config.split == 1 or (activation == "leaky_relu" and N % 16 == K % 16):  # shared: a few of each
                assert form(launch.variant("linear", "", 0)) in known, (launch.kernel, M, N, K, activation)


def launches(M: int, N: int, K: int, dtype: torch.dtype, activation: str, target: Target) -> list[Launch]:
    x, w, y = (torch.empty(size, dtype=dtype, device="meta") for size in ((M, K), (N, K), (M, N)))
    saved, bias, how = None if activation == "none" else y, y[0], (activation, 0.2, target)
    return [
        fwd_launch(x, w, bias, y, None, *how),
        bwd_input_launch(y, saved, w, x, *how),
        bwd_weight_launch(y, saved, x, w, bias, *how),
        bwd_weight_launch(y, saved, x, w.float(), bias.float(), *how),
    ]
