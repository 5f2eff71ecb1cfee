"""A chain of layers, linear or convolutions, with all that stands between them as one function: what passes is raw.

A layer that is followed by a norm stores its raw output once, with its statistics; the norm and its activation are
formed where the next layer loads them, and differentiated in the epilogue of that layer's input gradient. One that is
not stores its activated output; the next layer's input gradient goes through that activation before it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fastgan.ops import activation as act
from fastgan.ops import dropout as drop
from fastgan.ops import peers
from fastgan.ops.backend import register
from fastgan.ops.batch_norm_act_compute import Running, settle, through_norm
from fastgan.ops.chain_layer import Layer, apart, normalise, returned, rows, shaped
from fastgan.ops.conv_compute import NOTHING
from fastgan.ops.destination import Owners, anchor, memory
from fastgan.ops.linear_compute import Incoming
from fastgan.ops.linear_dropout import apply_with_dropout, through
from fastgan.ops.registration import asked_for, batched
from fastgan.ops.shadow import Pair

if TYPE_CHECKING:
    from fastgan.kernels.norm import Norm

OP = register("chain")
PARAMETERS = 4  # of a layer: weight, bias, and the norm's weight and bias
SAVED = 4  # of a layer: output, mean, var, and the seed of its dropout


def run(
    layers: Sequence[Layer],
    groups: int,
    input: Tensor,
    parameters: Sequence[Tensor | None],
    shades: Sequence[Pair],
) -> Tensor:
    """Run layers one into the next, on the kernels: all linear, or all convolutions.

    Args:
        layers: what each of them does.
        groups: equal parts of the batch, one after the other, that have statistics of their own; with instance norms
            as many as samples.
        input: (batch, in_features) or (batch, channels, height, width), of the dtype that is computed in.
        parameters: for each layer weight, bias, and the norm's weight and bias; None for those it lacks.
        shades: for each layer what stands in for weight and bias where they are of another dtype.

    Returns:
        What the last layer puts out. Differentiable as often as asked.
    """
    with peers.alone(apart(layers)):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, *parameters)):
            output: Tensor = _Chain.apply(tuple(layers), groups, tuple(shades), input, *parameters)
            return output
        return _forward(layers, groups, input, parameters, _used(parameters, shades), keep=False)[0]


def _used(parameters: Sequence[Tensor | None], shades: Sequence[Pair]) -> list[Tensor | None]:
    """Return what is computed with: stand-ins where there are any."""
    every = [shade for pair in shades for shade in (*pair, None, None)]
    return [t if shade is None else shade for t, shade in zip(parameters, every, strict=True)]


class _Chain(Function):
    """Saves what is computed with; leaves, and what stand-ins stand for, are held on to beside it."""

    @staticmethod
    def forward(
        ctx: Any,
        layers: tuple[Layer, ...],
        groups: int,
        shades: tuple[Pair, ...],
        input: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        factors = _used(parameters, shades)
        output, kept = _forward(layers, groups, input, parameters, factors, keep=True)
        ctx.save_for_backward(input, *factors, *kept)
        ctx.layers, ctx.groups, ctx.peers = layers, groups, peers.current()
        pairs = list(zip(parameters, factors, strict=True))
        ctx.anchors = [None if t is None else anchor(t, None if f is t else f) for t, f in pairs]
        ctx.shaded = [f is not t for t, f in pairs]
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        layers, count = ctx.layers, PARAMETERS * len(ctx.layers)
        if grad is None:
            return (None,) * (4 + count)
        input, *rest = ctx.saved_tensors
        tape = Tape(layers, ctx.groups, input, rest[:count], ctx.anchors, ctx.shaded, rest[count:])
        wanted = asked_for(ctx)[3:]
        with peers.together(ctx.peers), peers.alone(apart(layers)):
            if not torch.is_grad_enabled() and not batched(grad):
                return (None, None, None, *_backward(tape, grad, wanted))
            if tape.straight and not any(wanted[1:]):
                return (None, None, None, _straight_backward(tape, grad), *(None,) * count)
            return (None, None, None, *_recorded_backward(tape, grad, wanted))


class Tape(NamedTuple):
    """What a forward pass leaves for its backward pass."""

    layers: tuple[Layer, ...]
    groups: int
    input: Tensor
    factors: Sequence[Tensor | None]  # what was computed with: parameters, or their stand-ins
    anchors: Sequence[Tensor | None]  # parameters, of leaves and of what has a stand-in
    shaded: Sequence[bool]  # which factors are stand-ins
    kept: Sequence[Tensor | None]

    @property
    def straight(self) -> bool:
        """Whether the gradient of the input depends on the weights alone."""
        flat = all(layer.norm is None and layer.activation not in act.SMOOTH for layer in self.layers)
        return flat and self.layers[0].before[0] not in act.SMOOTH

    def of(self, at: int) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return weight and bias of a layer, and those of its norm."""
        weight, bias, gamma, beta = self.factors[PARAMETERS * at : PARAMETERS * (at + 1)]
        assert weight is not None
        return weight, bias, gamma, beta

    def parameter(self, place: int) -> Tensor | None:
        """Return an operand that gradients go to."""
        return self.anchors[place] if self.shaded[place] else self.factors[place]

    def shades(self, at: int) -> Pair:
        """Return what stands in for weight and bias of a layer."""
        places = PARAMETERS * at, PARAMETERS * at + 1
        weight, bias = (self.factors[place] if self.shaded[place] else None for place in places)
        return weight, bias

    def owners(self, at: int) -> Owners:
        """Return whose gradients those of weight and bias of a layer are."""
        return Owners(self.anchors[PARAMETERS * at], self.anchors[PARAMETERS * at + 1])

    def output(self, at: int) -> Tensor | None:
        """Return the output of a layer, raw where a norm follows."""
        return self.kept[SAVED * at]

    def seed(self, at: int) -> Tensor | None:
        """Return the seed of a layer's dropout."""
        return self.kept[SAVED * at + 3]

    def norm(self, at: int) -> Norm | None:
        """Return the norm behind a layer, as the kernels take it."""
        layer, mean, var = self.layers[at], *self.kept[SAVED * at + 1 : SAVED * at + 3]
        return _norm(layer, mean, var, *self.of(at)[2:]) if layer.norm is not None else None


def _norm(layer: Layer, mean: Tensor | None, var: Tensor | None, gamma: Tensor | None, beta: Tensor | None) -> Norm:
    from fastgan.kernels.norm import Norm

    assert layer.norm is not None and mean is not None and var is not None
    return Norm(mean, var, gamma, beta, layer.norm.eps, layer.activation, layer.slope)


def _forward(
    layers: Sequence[Layer],
    groups: int,
    input: Tensor,
    parameters: Sequence[Tensor | None],
    factors: Sequence[Tensor | None],
    keep: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the output, and what backward needs beside ``factors``, by which each of ``parameters`` is stood for."""
    from fastgan.kernels.batch_norm_act import batch_norm_act_fwd
    from fastgan.kernels.norm import Statistics

    kept: list[Tensor | None] = []
    u, norm, team = input, None, peers.current()
    for at, layer in enumerate(layers):
        weight, bias, gamma, beta = factors[PARAMETERS * at : PARAMETERS * (at + 1)]
        assert weight is not None
        statistics = seed = dropout = mean = var = None
        if layer.norm is not None and layer.norm.training:
            mean, var = torch.empty((2, groups, layer.features(weight)), dtype=torch.float32, device=u.device)
            statistics = Statistics(mean, var, *(layer.norm[2:] if team is None else (None, None, None, 0.0)))
        elif layer.norm is not None and layer.norm.running_mean is not None and layer.norm.running_var is not None:
            mean, var = layer.norm.running_mean[None], layer.norm.running_var[None]
            if keep:  # a later training pass may move them before this one's gradient is formed
                mean, var = mean.clone(), var.clone()
        if layer.dropout:
            seed = drop.draw(u.device)
            dropout = _dropout(layer, seed)
        u = layer.product(u, weight, bias, norm, dropout, statistics)
        if team is not None and statistics is not None and layer.norm is not None:
            settle(*statistics[:2], Running(*layer.norm[2:]), u.numel() // (u.shape[1] * groups), team)
        norm = None if layer.norm is None else _norm(layer, mean, var, gamma, beta)
        if keep:
            kept += [u, mean, var, seed]
    if norm is not None:
        u = shaped(batch_norm_act_fwd(rows(u), norm), u)
    elif keep and layers[-1].activation == "none":
        kept[-SAVED] = None
    return returned(u, input, [weight for weight in parameters[::PARAMETERS] if weight is not None]), kept


def _dropout(layer: Layer, seed: Tensor) -> Any:
    from fastgan.kernels.linear import Dropout

    return Dropout(seed, drop.threshold(layer.dropout), drop.scale(layer.dropout), layer.dropout_first)


def _backward(tape: Tape, grad: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Form the wanted gradients from the last layer down, and none below the lowest that is wanted."""
    results: list[Tensor | None] = [None] * len(wanted)
    last = len(tape.layers) - 1
    incoming = _through_the_end(tape, grad, wanted, results)
    for at in range(last, -1, -1):
        weight = tape.of(at)[0]
        operand = tape.input if at == 0 else tape.output(at - 1)
        norm = tape.norm(at - 1) if at else None
        own = 1 + PARAMETERS * at
        assert operand is not None
        layer = tape.layers[at]
        below = None
        if norm is None and any(wanted[:own]):
            below = _below(tape, at - 1) if at else layer.ahead(operand)
        owners, bias, gb = tape.owners(at), tape.of(at)[1], None
        if wanted[own + 1] and bias is not None:
            results[own + 1] = gb = memory(owners.bias, bias.shape, bias)
        if gb is not None and layer.norm is not None and layer.norm.training:
            gb.zero_()  # the norm takes shifts away
            gb = None
        incoming = layer.settled(incoming, weight, operand, (any(wanted[:own]), wanted[own]), below, norm, gb)
        if wanted[own]:
            results[own] = layer.to_weight(incoming, operand, weight, gb, norm, owners)
        elif gb is not None:
            layer.to_bias(incoming, gb)
        if not any(wanted[:own]):
            break
        if at == 0:
            results[0] = layer.to_input(incoming, weight, operand, below=below)
        elif norm is not None:
            to = _places(tape, at - 1, wanted, results)
            incoming = _corrected(layer.to_input(incoming, weight, operand, norm=norm, to=to), operand, norm, to)
        else:
            incoming = Incoming(layer.to_input(incoming, weight, operand, below=below))
    return results


def _through_the_end(tape: Tape, grad: Tensor, wanted: Sequence[bool], results: list[Tensor | None]) -> Incoming:
    """Take the incoming gradient through what follows the last product."""
    last = len(tape.layers) - 1
    layer, y, norm, seed = tape.layers[last], tape.output(last), tape.norm(last), tape.seed(last)
    if norm is not None and y is not None:
        to = _places(tape, last, wanted, results)
        return _corrected(shaped(through_norm(rows(grad), rows(y), norm, to, len(y)), y), y, norm, to)
    if seed is not None:
        g = through(grad, y, seed, layer.activation, layer.slope, layer.dropout, layer.dropout_first)
        return Incoming(g)
    return Incoming(grad, y, layer.activation, layer.slope)


def _corrected(g: Tensor, raw: Tensor, norm: Norm, to: Any) -> Incoming:
    """Join to a gradient what statistics, of all peers' parts, add to it."""
    from fastgan.kernels.norm import Correction

    if to.lift is None:
        return Incoming(g)
    return Incoming(g, raw, correction=Correction(norm.mean, *peers.averages(to.lift, to.tilt)))


def _places(tape: Tape, at: int, wanted: Sequence[bool], results: list[Tensor | None]) -> Any:
    """Make room for the gradients of the norm behind a layer, those that anybody will use."""
    from fastgan.kernels.norm import NormGradients

    layer, (_, _, gamma, beta), own = tape.layers[at], tape.of(at), 1 + PARAMETERS * at
    lift = tilt = None
    norm = tape.norm(at)
    assert norm is not None and layer.norm is not None
    if layer.norm.training and any(wanted[: own + 1]):
        lift, tilt = torch.empty((2, *norm.mean.shape), dtype=torch.float32, device=norm.mean.device)
    for place, vector in ((own + 2, gamma), (own + 3, beta)):
        if wanted[place] and vector is not None:
            results[place] = memory(tape.anchors[place - 1], vector.shape, vector)
    return NormGradients(lift, tilt, results[own + 2], results[own + 3])


def _below(tape: Tape, at: int) -> Any:
    from fastgan.kernels.linear_bwd_input import Below

    layer, y, seed = tape.layers[at], tape.output(at), tape.seed(at)
    if y is None or (layer.activation == "none" and seed is None):
        return None
    return Below(y, layer.activation, layer.slope, None if seed is None else _dropout(layer, seed))


def _straight_backward(tape: Tape, grad: Tensor) -> Tensor:
    """Form the gradient of the input with a graph of its own: a penalty through it costs no second forward pass."""
    for at in range(len(tape.layers) - 1, -1, -1):
        layer, mask, seed = tape.layers[at], tape.output(at), tape.seed(at)
        operand = tape.output(at - 1) if at else tape.input
        assert operand is not None
        if seed is not None:
            grad = through(grad, mask, seed, layer.activation, layer.slope, layer.dropout, layer.dropout_first)
            mask = None
        weight = tape.parameter(PARAMETERS * at)
        assert weight is not None
        mask = None if layer.activation == "none" else mask
        grad = layer.differentiate(grad, weight, tape.shades(at)[0], mask, operand)
    before = tape.layers[0].before
    return grad if before == NOTHING else act.times_derivative(grad, tape.input, *before)


def _recorded_backward(tape: Tape, grad: Tensor, wanted: Sequence[bool]) -> Iterator[Tensor | None]:
    """Form gradients of any order: run the layers again with plain arithmetic on the norms, and let autograd follow."""
    with torch.enable_grad():  # by views: one tensor may stand in two places, or come out of another of them
        parameters = (tape.parameter(place) for place in range(len(tape.factors)))
        operands = [None if t is None else t.view_as(t) for t in (tape.input, *parameters)]
        assert operands[0] is not None
        whole = _recorded(tape._replace(input=operands[0]), operands[1:])
        asked = [t for t, want in zip(operands, wanted, strict=True) if want and t is not None]
        gradients = iter(torch.autograd.grad(whole, asked, grad, create_graph=True, allow_unused=True))
    return (next(gradients) if want and t is not None else None for t, want in zip(operands, wanted, strict=True))


def _recorded(tape: Tape, parameters: Sequence[Tensor | None]) -> Tensor:
    u = act.activate(tape.input, *tape.layers[0].before)
    for at, layer in enumerate(tape.layers):
        weight, bias, gamma, beta = parameters[PARAMETERS * at : PARAMETERS * (at + 1)]
        assert weight is not None
        seed, shades = tape.seed(at), tape.shades(at)
        if layer.norm is not None:
            u = layer.apply(u, weight, bias, shades)
            mean, var = (tape.kept[SAVED * at + 1], tape.kept[SAVED * at + 2])
            u = normalise(u, gamma, beta, layer.norm.eps, tape.groups, None if layer.norm.training else (mean, var))
            u = act.activate(u, layer.activation, layer.slope)
        elif seed is not None:
            more = (layer.activation, layer.slope, layer.dropout, layer.dropout_first)
            u = apply_with_dropout(u, weight, bias, seed, *more, shades)
        else:
            u = layer.apply(u, weight, bias, shades)
    return u
