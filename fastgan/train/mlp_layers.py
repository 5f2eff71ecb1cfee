"""Reading a fully connected network as a list of layers: each a product with norm, activation and dropout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from fastgan.models.mlp import MLPDiscriminator, MLPGenerator
from fastgan.nn import BatchNorm1dAct, Chain, LinearAct
from fastgan.nn.chain_members import ACTIVATIONS, plain
from fastgan.ops.mlp_step_recipe import Layer, Norm

WIDEST = 2048
COMPOSED = (nn.Sequential, Chain, MLPGenerator, MLPDiscriminator)


class Refused(Exception):  # noqa: N818  # it is an answer, and no error
    """Why something is not taken, in words."""


def layers_of(network: nn.Module) -> list[Layer]:
    """Return a network's layers. Raises Refused, with the reason, for what they cannot say."""
    layers: list[Layer] = []
    activated = True  # by what stands behind the last product; nothing can be put behind an activation but dropout
    for member in _members(network):
        if isinstance(member, nn.Linear):
            layers.append(_linear(member))
            activated = layers[-1].activation != "none"
            continue
        if not layers:
            raise Refused(f"{_name(member)} stands in front of the first layer")
        last = layers[-1]
        if isinstance(member, nn.BatchNorm1d):
            if activated or last.norm or last.dropout:
                raise Refused("a norm stands behind something other than a linear layer")
            own = {"activation": "none", "negative_slope": 0.0}
            if isinstance(member, BatchNorm1dAct):
                own = {"activation": member.activation, "negative_slope": member.negative_slope}
            activated = own["activation"] != "none"
            layers[-1] = replace(last, norm=_norm(member), **own)  # type: ignore[arg-type]
        elif isinstance(member, nn.Dropout):
            if last.dropout:
                raise Refused("two dropouts follow each other")
            layers[-1] = replace(last, dropout=member.p, dropout_first=False)
            activated = True
        elif activated:
            raise Refused(f"{_name(member)} stands behind an activation or a dropout")
        else:
            slope = float(getattr(member, "negative_slope", 0.0))
            layers[-1], activated = replace(last, activation=ACTIVATIONS[type(member)], negative_slope=slope), True
    if not layers:
        raise Refused("it has no linear layer")
    for layer in layers:
        _check(layer)
    return layers


def _members(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what a network is composed of, in order."""
    if not plain(module) or "parametrizations" in module._modules:
        raise Refused(f"{_name(module)} has hooks, a forward of its own or formed weights")
    if type(module) in COMPOSED:
        for member in filter(None, module._modules.values()):  # one that stands there twice comes twice
            yield from _members(member)
    elif type(module) in (nn.Linear, LinearAct, nn.BatchNorm1d, BatchNorm1dAct, nn.Dropout, *ACTIVATIONS):
        if module.training or not isinstance(module, (nn.BatchNorm1d, nn.Dropout, LinearAct)):
            yield module
        else:
            raise Refused(f"{_name(module)} is in evaluation mode")
    elif type(module) not in (nn.Identity, nn.Flatten, nn.Unflatten):
        raise Refused(f"it contains {_name(module)}")


def _linear(member: nn.Linear) -> Layer:
    own = {}
    if isinstance(member, LinearAct):
        own = {"activation": member.activation, "dropout": member.dropout, "dropout_first": member.dropout_first}
        own |= {"negative_slope": member.negative_slope if member.activation == "leaky_relu" else 0.0}
    return Layer(member.weight, member.bias, **own)  # type: ignore[arg-type]


def _norm(member: nn.BatchNorm1d) -> Norm:
    if member.momentum is None:
        raise Refused("a norm's momentum is None")
    running = (member.running_mean, member.running_var, member.num_batches_tracked)
    return Norm(member.weight, member.bias, *running, member.momentum, member.eps)


def _check(layer: Layer) -> None:
    if max(layer.weight.shape) > WIDEST:
        raise Refused(f"a layer is wider than {WIDEST}: {tuple(layer.weight.shape)}")
    for parameter in layer.parameters:
        if parameter is None:
            continue
        if not parameter.requires_grad:
            raise Refused("a parameter is frozen")
        if not parameter.is_contiguous() or parameter.dtype not in (torch.float32, torch.float64):
            raise Refused("a parameter is not fp32, or does not lie in rows")
    if layer.activation == "leaky_relu" and layer.negative_slope < 0:
        raise Refused("a leaky ReLU's slope is below 0")


def _name(module: nn.Module) -> str:
    return type(module).__name__
