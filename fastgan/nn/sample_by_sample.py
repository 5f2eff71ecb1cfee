"""Which modules treat each sample by itself, always in the same way."""

from __future__ import annotations

from torch import nn

from fastgan.nn.chain import Chain
from fastgan.nn.chain_members import ACTIVATIONS, plain
from fastgan.nn.conv import Conv1dAct, Conv2dAct, ConvTranspose1dAct, ConvTranspose2dAct
from fastgan.nn.linear import LinearAct
from fastgan.nn.maxout import Maxout

CONTAINERS = (nn.Sequential, Chain)
MEMBERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Flatten, nn.Unflatten, nn.Identity),
    *(LinearAct, Maxout, Conv1dAct, Conv2dAct, ConvTranspose1dAct, ConvTranspose2dAct, *ACTIVATIONS),
)


def sample_by_sample(module: nn.Module) -> bool:
    """Whether a module's output for a sample follows from that sample and the weights alone.

    So it is for linear layers, convolutions, activations and what is composed of them: no norm over the batch, no
    dropout, no weights that move at each pass (spectral norm), no hooks. Of a class that is not known here, one whose
    ``forward`` only composes its members may say so by a class attribute ``composes = True``; others are taken to mix.
    """
    if not plain(module) or vars(module).get("dropout"):
        return False
    if type(module) in CONTAINERS or vars(type(module)).get("composes", False):
        return all(sample_by_sample(member) for member in module.children())
    return type(module) in MEMBERS
