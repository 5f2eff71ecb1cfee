"""The trained generator of a run, read back from its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.presets import Config
from fastgan.train import build, run, state
from fastgan.train.sampler import Latents


@dataclass(frozen=True)
class Generator:
    """A generator in evaluation mode, with the configuration and the step that it comes from."""

    module: nn.Module
    config: Config
    step: int
    device: torch.device

    def sample(self, n: int, seed: int, batch: int = 256) -> Tensor:
        """Draw ``n`` samples from latents seeded with ``seed``, ``batch`` at a time; all latents are drawn at once."""
        z = Latents(self.config.latent, self.config.z_dim, torch.device("cpu"), seed).draw(n)
        return torch.cat([samples(self.module, part.to(self.device)).cpu() for part in z.split(batch)])


def samples(module: nn.Module, z: Tensor) -> Tensor:
    """What ``module`` makes of ``z`` in evaluation mode, without gradients; its mode is put back."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            made: Tensor = module(z)
        return made
    finally:
        module.train(training)


def load_generator(path: Path, device: str = "auto") -> Generator:
    """Load the generator of the run in ``path``. Raises UserError where there is no run or no whole checkpoint."""
    config = run.stored(path)
    where = build.device(device)
    stored = run.latest_checkpoint(path)
    if stored is None:
        raise UserError(f"{path} has no checkpoint yet: train further (fastgan train --resume --out {path})")
    shape = stored.values.get("sample_shape")
    if not isinstance(shape, list):
        raise UserError(f"the checkpoint of {path} does not say what its samples look like: it is no run of a preset")
    module = build.networks(config, tuple(shape))[0]
    state.check_network("generator", module, stored.tensors["generator"])
    module.load_state_dict(stored.tensors["generator"])
    return Generator(module.to(where).eval(), config, stored.step, where)
