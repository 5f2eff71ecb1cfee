"""Latents to look at: drawn from a seed on the CPU, so that it says the same everywhere; cut off, and in between."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.errors import UserError, unknown

KINDS = ("normal", "uniform", "discrete")


@dataclass(frozen=True)
class Layout:
    """How ``n`` samples stand to each other; rows of ``columns`` are full where they mean something."""

    n: int
    columns: int | None = None
    interpolate: bool = False  # each row from one latent to another
    label: int | None = None  # all of one class
    class_rows: bool = False  # each row of one class, all from the same latents

    @property
    def own(self) -> int:
        """How many samples have latents of their own."""
        return (self.columns or self.n) if self.class_rows else self.n

    def latents(self, kind: str, z_dim: int, random: torch.Generator, truncation: float | None = None) -> Tensor:
        """Draw the latents ``(n, z_dim)`` of all samples."""
        columns, own = self.columns or self.n, self.own
        if not self.interpolate:
            z = drawn(kind, z_dim, own, random, truncation)
        else:
            ends = drawn(kind, z_dim, 2 * own // columns, random, truncation)
            z = between(kind, ends[0::2], ends[1::2], columns)
        return z.repeat(self.n // own, 1)

    def labels(self, classes: int, random: torch.Generator) -> Tensor | None:
        """Draw the labels ``(n,)`` for a generator of ``classes`` classes; None where it knows none."""
        if not classes:
            return None
        if self.label is not None:
            return torch.full((self.n,), self.label)
        columns = self.columns or self.n
        if self.class_rows:
            return torch.arange(self.n) // columns % classes
        if self.interpolate:  # one for each row
            return torch.randint(classes, (self.n // columns,), generator=random).repeat_interleave(columns)
        return torch.randint(classes, (self.n,), generator=random)


def drawn(kind: str, z_dim: int, n: int, generator: torch.Generator, truncation: float | None = None) -> Tensor:
    """Draw ``n`` latents ``(n, z_dim)``: ``normal``, ``uniform`` in [-1, 1], or ``discrete``, each component -1 or 1.

    Under ``truncation`` T > 0 each component follows the same law, given that it lies in [-T, T]: one that does keeps
    its value, so that a seed shows the same samples, only tamer; the others are drawn again. Brock et al., 2019,
    section 3.1 (who draw until it lies within; here the law's quantiles give it at once).
    """
    if kind not in KINDS:
        raise unknown("latent", kind, KINDS)
    size = (n, z_dim)
    if kind == "discrete":
        if truncation is not None and truncation < 1:
            raise UserError(f"discrete latents are -1 and 1, of which none is left within {truncation:g}: take normal")
        return torch.randint(2, size, generator=generator).float() * 2 - 1
    z = torch.randn(size, generator=generator) if kind == "normal" else torch.rand(size, generator=generator) * 2 - 1
    if truncation is None:
        return z
    share = torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 1  # of the law between -T and T
    if kind == "normal":
        again = torch.erfinv(share * math.erf(truncation / math.sqrt(2))) * math.sqrt(2)
    else:
        again = share * min(truncation, 1.0)
    return torch.where(z.abs() <= truncation, z, again.clamp(-truncation, truncation).to(z))


def between(kind: str, first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Rows of ``steps`` latents from each of ``first`` to that of ``last``, both included: ``(rows * steps, z_dim)``.

    Uniform and discrete latents go straight, normal ones on the great circle, where their length stays a likely one:
    White, 2016, "Sampling Generative Networks", section 2.1. Opposite or parallel points have no one circle; they go
    straight too.
    """
    a, b = first.double().unsqueeze(1), last.double().unsqueeze(1)
    t = torch.linspace(0, 1, steps, dtype=torch.float64).view(1, steps, 1)
    path = torch.lerp(a, b, t)
    if kind == "normal":
        angle = torch.acos(torch.cosine_similarity(a, b, dim=2).clamp(-1, 1)).unsqueeze(2)
        bent = torch.sin(angle) > 1e-6
        circle = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
        path = torch.where(bent, circle, path)
    return path.flatten(0, 1).to(first)
