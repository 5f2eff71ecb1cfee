"""The cards that predictions are made for. Rates are dense, of tensor cores with fp32 accumulation, at boost clocks.

Sources: NVIDIA's data sheets "H200 Tensor Core GPU" (SXM), "H100 Tensor Core GPU" (SXM5) and "A100 Tensor Core GPU"
(80 GB SXM), and the whitepaper "NVIDIA Ada GPU Architecture" for the GeForce RTX 4090, each with sizes of the L2.
Limits of a multiprocessor: ``cards.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastgan.kernels import cost


@dataclass(frozen=True)
class Gpu:
    """A card by name: as ``nvidia-smi`` has it, as tuned tables have it, and what it offers."""

    title: str
    table: str
    arch: int
    offers: cost.Card


GPUS = {
    "h200": Gpu("NVIDIA H200", "nvidia-h200", 90, cost.CARDS[90]),
    "h100": Gpu("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3", 90, replace(cost.CARDS[90], gbs=3350, l2_mb=50)),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb", 80, cost.CARDS[80]),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090", 89, cost.CARDS[89]),
}
