"""The theory of GANs, each claim checked by numbers on the CPU in float64 and drawn: ``fastgan theory``.

A module of this folder holds functions ``name_of_claim(seed: int = 0) -> Claim`` and joins them in its ``CLAIMS``.
"""

from __future__ import annotations

import importlib

from fastgan.evaluate.theory.claim import Check, Claim, Measured, name_of

__all__ = ["MODULES", "Check", "Claim", "Measured", "checks", "name_of"]

MODULES = (
    "discriminator",
    "figure_1",
    "divergences",
    "critic",
    "saturation",
    "games",
    "staleness",
    "cross_entropy",
    "latents",
    "conditional",
    "likelihood",
    "discriminative",
    "hidden_markov",
)


def checks() -> dict[str, Check]:
    """Name of a claim -> the function that checks it, in the order in which the theory is told."""
    modules = [importlib.import_module(f"{__name__}.{name}") for name in MODULES]
    return {name_of(check): check for module in modules for check in module.CLAIMS}
