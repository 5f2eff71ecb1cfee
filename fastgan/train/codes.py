"""What binary codes have in common: mutual information between units, and how often each code occurs."""

from __future__ import annotations

import torch
from torch import Tensor


def information(codes: Tensor) -> Tensor:
    """Mutual information in bits of each two units of ``codes`` (n, units), taken as 1 above 1/2: (units, units).

    On the diagonal stands a unit's entropy. Of the shares in the sample itself, so that it is a little above 0 for
    independent units.
    """
    ones = (codes > 0.5).double()
    sides = torch.stack((1 - ones, ones))  # (2, n, units)
    joint = torch.einsum("ank,bnl->klab", sides, sides) / len(codes)
    alone = sides.mean(1).T  # (units, 2)
    apart = alone[:, None, :, None] * alone[None, :, None, :]
    terms = torch.where(joint > 0, joint * (joint / apart.clamp_min(1e-300)).log2(), 0.0)
    return terms.sum((2, 3))


def largest_information(codes: Tensor) -> float:
    """The most that any unit tells of another one, in bits."""
    bits = information(codes)
    return float(bits.masked_fill(torch.eye(len(bits), dtype=torch.bool), 0.0).max())


def sharpness(codes: Tensor) -> float:
    """The mean distance of code values from 1/2, as a share of 1/2: 1 where all are 0 or 1."""
    return float((codes - 0.5).abs().mean() * 2)


def shares(codes: Tensor) -> tuple[list[str], Tensor, Tensor]:
    """The binary codes that occur, the most frequent first; the share of each; the product of its symbols' shares."""
    ones = (codes > 0.5).long()
    kinds, counts = torch.unique(ones, dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    kinds, seen = kinds[order], counts[order].double() / len(codes)
    on = ones.double().mean(0)
    factors = torch.where(kinds > 0, on, 1 - on).prod(1)
    return ["".join(map(str, kind.tolist())) for kind in kinds], seen, factors


def entropy(share: Tensor) -> float:
    """Entropy of shares, in bits."""
    return float(-(share * share.clamp_min(1e-300).log2()).sum() + 0.0)
