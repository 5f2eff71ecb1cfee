"""What a training step computes and moves at the least, and what share of the roofline its time therefore is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastgan.benchmarks.record import Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.step_workloads import Workload

ADAM_BYTES = 28  # of a parameter and a step: weight, gradient and two moments read, all but the gradient written
COUNTED_BATCH = 2


@functools.lru_cache(maxsize=32)
def flops_of(workload: Workload) -> float:
    """Return the multiply-adds of a step, twice, for each sample of the batch: the engine's, by plain PyTorch."""
    from fastgan.ops.backend import backend

    with backend("reference"):
        trainer = workload.trainer(COUNTED_BATCH, torch.device("cpu"), precision="fp32")
        step = trainer._iterate
        with Flops() as counter:
            step(step.pattern(0))
    return counter.total / COUNTED_BATCH


class Flops(TorchDispatchMode):
    """Counts products by PyTorch's formulas; its own counter watches modules, which double backward does not bear."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def rate(rows: Sequence[Timed], workload: Workload, batch: int, setting: Setting) -> None:
    """Turn best times into rates, and into shares of the shortest time for the products and the optimisers' bytes."""
    if not rows:
        return
    flops = flops_of(workload) * batch
    trainer = workload.trainer(COUNTED_BATCH, torch.device("cpu"))
    sizes = [sum(weight.numel() for weight in net.parameters()) for net in (trainer.generator, trainer.discriminator)]
    moved = float(ADAM_BYTES * (sizes[0] + trainer.config.n_critic * sizes[1]))
    for row in rows:
        if row.best is not None:
            row.tflops = flops / row.best.median / 1e6
            floor = setting.ceilings.floor_us(row.dtype, flops, moved)
            row.roofline = None if floor is None else floor / row.best.median
