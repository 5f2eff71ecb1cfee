"""Do the parts of a training fit together? Asked once, before anything is written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.errors import LostPeersError, UserError
from fastgan.ops.peers import together
from fastgan.train.contrast import Contrast
from fastgan.train.step import Step


def fit_together(step: Step, z: Tensor, sample_shape: tuple[int, ...]) -> None:
    """Send the latents ``z`` through both networks, whose buffers stay as they were. Raises UserError on a misfit."""
    players = step.players
    buffers = [*players.generator.buffers(), *players.discriminator.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    step.classes.labels = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    gpus = [z.device] if z.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=gpus), together(step.peers):
            if isinstance(step, Contrast):
                step.fit_together(_ask, z, sample_shape)
                return
            fake = _ask("generator", step.generate, z)
            if fake.shape != (len(z), *sample_shape):
                raise UserError(
                    f"the generator makes {tuple(fake.shape)} of latents {tuple(z.shape)} where the data's samples are"
                    f" {tuple(sample_shape)}: change its last layer, or the data"
                )
            logits = _ask("discriminator", step.judge, fake)
            if any(missed.dim() for missed in step._missed):
                raise UserError(f"the generator returns more than samples {tuple(fake.shape)}: return them alone")
            judged, what = len(z) // step.pac, "samples" if step.pac == 1 else f"packs of {step.pac} samples"
            if logits.shape[:1] != (judged,):
                raise UserError(
                    f"the discriminator makes {tuple(logits.shape)} of {judged} {what}: let it return a logit for each"
                )
            step.serves_both = step.serves_both and logits.numel() == judged
    finally:
        step.classes.labels = None
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)


def _ask(side: str, network: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    try:
        return network(given)
    except (UserError, LostPeersError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # what PyTorch raises on shapes and batches
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"the {side} cannot take a batch of shape {tuple(given.shape)}: {reason}; change batch_size, z_dim or the"
            f" {side}"
        ) from error
