"""Samples as rows of memory: what a kernel needs to see of them where it does not matter which element is which."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
DIMENSIONS = {torch.channels_last: 4, torch.channels_last_3d: 5}


def layout_of(samples: Tensor) -> torch.memory_format:
    """Return how the elements of each sample (n, ...) lie, densely; contiguous where they do not."""
    return next((form for form in LAYOUTS if _lies(samples[:1], form)), torch.contiguous_format)


def rows(samples: Tensor, form: torch.memory_format) -> Tensor:
    """Return (n, elements of a sample) as they lie in memory in that layout, copied where they lie otherwise."""
    if not _lies(samples[:1], form):
        samples = samples.contiguous(memory_format=form)
    return samples.as_strided((len(samples), samples[:1].numel()), (samples.stride(0), 1))


def unrowed(rows: Tensor, samples: Tensor, form: torch.memory_format) -> Tensor:
    """Return contiguous rows in the shape of ``samples``, whose layout theirs is."""
    if form == torch.contiguous_format:
        return rows.view(samples.shape)
    return rows.as_strided(samples.shape, torch.empty(samples.shape, device="meta", memory_format=form).stride())


def _lies(samples: Tensor, form: torch.memory_format) -> bool:
    """Whether samples are dense in that layout."""
    return samples.dim() == DIMENSIONS.get(form, samples.dim()) and samples.is_contiguous(memory_format=form)
