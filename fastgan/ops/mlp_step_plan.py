"""Writes the phase table of a training iteration: from two networks, their optimisers and how an iteration goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.ops import dropout, streams
from fastgan.ops import mlp_step_form as form
from fastgan.ops.gan_loss_formulas import RECIPES
from fastgan.ops.mlp_step_form import NONE, Op, Param, Phase, bits
from fastgan.ops.mlp_step_recipe import Layer, Recipe, Side
from fastgan.ops.optimizer_step import Number


class Written(NamedTuple):
    """A table, and what it is about."""

    table: Tensor
    parameters: Tensor
    slots: list[Tensor]
    rates: Tensor
    numbers: Callable[[], list[Sequence[Number]]]


@dataclass
class Pass:
    """Memory of a pass of some rows through a network: for each layer its output, that in front of its norm, and so on.

    ``grads`` are the gradients in front of the norms, which have ``back`` rows, the last ones of the pass.
    """

    rows: int
    back: int
    outs: list[int] = field(default_factory=list)
    raws: list[int] = field(default_factory=list)
    stats: list[int] = field(default_factory=list)
    grads: list[int] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)  # sites of their dropouts


class Writer:
    """Writes phases in an order in which each may follow the one before; ``written`` says which go side by side."""

    def __init__(self, generator: Side, discriminator: Side, recipe: Recipe) -> None:
        self.generator, self.discriminator, self.recipe = generator, discriminator, recipe
        self._slots: list[Tensor] = []
        self._known: dict[int, int] = {}
        self._rows: list[Phase] = []
        self._params: list[Param] = []
        self._places: dict[Tensor, int] = {}
        self._ranges: dict[int, tuple[int, int]] = {}
        self._verdicts: dict[int, int] = {}
        self._drops = 0
        self._clock = self._slot(recipe.clock)
        self._wide = torch.float64 if recipe.dtype == torch.float64 else torch.float32
        self._groups = 0
        for side in (generator, discriminator):
            self._enrol(side)
        B, k = recipe.batch_size, recipe.n_critic
        self._passes = {"fresh": k + 1, "shared": k, "generator_first": 1}[recipe.updates]  # through the generator
        rows = self._passes * B
        self._z, self._x = self._room(rows, recipe.z_dim), self._room(2 * rows, generator.layers[-1].weight.shape[0])
        self._g = self._pass(generator, rows, B)
        self._scale = self._room(2 * B, 1, self._wide) if recipe.serves_both else NONE
        self._seen = self._room(k + 1, 4, torch.float32)

    def written(self) -> Written:
        """Return the table of one iteration."""
        self._draw()
        self._generate()
        if self.recipe.updates == "generator_first":
            self._generator_first()
        else:
            self._critic_first()
        self._end()
        rows = [row._replace(sites=self._drops) if row.drop else row for row in form.staged(self._rows)]
        sides = self.generator, self.discriminator
        return Written(
            form.packed(rows, len(Phase._fields)).to(self.recipe.clock.device),
            form.packed(self._params, len(Param._fields)).to(self.recipe.clock.device),
            self._slots,
            torch.zeros(len(self._params), form.RATES, dtype=torch.float64, device=self.recipe.clock.device),
            lambda: [numbers for side in sides for numbers in side.numbers()],
        )

    def _slot(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return NONE
        if id(tensor) not in self._known:
            assert tensor.is_contiguous()
            self._known[id(tensor)] = len(self._slots)
            self._slots.append(tensor)
        return self._known[id(tensor)]

    def _room(self, rows: int, cols: int, dtype: torch.dtype | None = None) -> int:
        """Return the slot of new memory."""
        how: dict[str, Any] = {"dtype": dtype or self.recipe.dtype, "device": self.recipe.clock.device}
        return self._slot(torch.full((rows, cols), float("nan"), **how))

    def _enrol(self, side: Side) -> None:
        """Give a row to each parameter of a side, in the order of its layers."""
        entries = {id(entry.param): entry for entry in side.entries}
        first, strip = len(self._params), 0
        own = [p for layer in side.layers for p in layer.parameters if p is not None]
        for p in own:
            entry = entries[id(p)]
            rule = side.rules[entry.group]
            flags = (rule.decoupled, rule.momentum, rule.nesterov, rule.centered)
            gradient = torch.zeros_like(p, requires_grad=False) if side.judged else None
            self._places[p] = len(self._params)
            first_state, second, third = (self._slot(state) for state in entry.states)
            self._params.append(
                Param(
                    value=self._slot(p.detach()), first=first_state, second=second, third=third,
                    step=self._slot(entry.step), average=self._slot(entry.average), shadow=self._slot(entry.shadow),
                    gradient=self._slot(gradient), size=p.numel(), group=self._groups + entry.group,
                    rule=form.RULES.index(rule.name), form=sum(bit << at for at, bit in enumerate(flags)),
                    counters=self._slot(side.counters), side=int(side is self.discriminator), strip=strip,
                )
            )  # fmt: skip
            strip += -(-p.numel() // form.STRIP)
        self._groups += len(side.rules)
        self._ranges[id(side)] = first, len(self._params)
        self._verdicts[id(side)] = self._room(strip, 2, self._wide) if side.judged else NONE

    def _pass(self, side: Side, rows: int, back: int, groups: int = 1) -> Pass:
        made = Pass(rows, back)
        for at, layer in enumerate(side.layers):
            width = len(layer.weight)
            ends = side is self.generator and at == len(side.layers) - 1
            made.outs.append(self._x if ends else self._room(rows, width))
            made.raws.append(self._room(rows, width) if layer.norm else NONE)
            norms = self._passes if side is self.generator else groups
            made.stats.append(self._room(norms * 2, width, self._wide) if layer.norm else NONE)
            if layer.norm:
                self._slots[made.stats[-1]] = self._slots[made.stats[-1]].view(norms, 2, width)
            made.grads.append(self._room(back, width))
        return made

    def _put(self, op: Op, **fields: int) -> None:
        self._rows.append(Phase(op, clock=self._clock, **fields))

    def _at(self, parameter: Tensor | None) -> int:
        return NONE if parameter is None else self._places[parameter]

    def _draw(self) -> None:
        recipe, B = self.recipe, self.recipe.batch_size
        images, k = recipe.images, recipe.n_critic
        size = images[0].numel()
        for at in range(k):
            self._put(
                Op.REAL, tiles=-(-B // 8), rows=B, cols=size, a=self._slot(images), out=self._x, out_row=2 * B * at,
                seed=streams.key(recipe.seed), site=at, sites=k, kind=int(images.dtype != torch.uint8),
                total=len(images), flip=images.shape[-1] if recipe.flip else 0,
            )  # fmt: skip
        for at in range(self._passes):
            self._put(
                Op.LATENT, tiles=-(-B * recipe.z_dim // form.STRIP), rows=B, cols=recipe.z_dim, out=self._z,
                out_row=B * at, seed=streams.key(recipe.latent_seed), site=at, sites=k + 1,
                kind=form.LATENTS.index(recipe.latent),
            )  # fmt: skip

    def _generate(self) -> None:
        """All of the iteration's fake batches in one pass: each a group with statistics of its own."""
        B, layers = self.recipe.batch_size, self.generator.layers
        self._g.drops = self._sites(layers)
        for at in range(len(layers)):
            source = self._z if at == 0 else self._g.outs[at - 1]
            ends = at == len(layers) - 1
            place = {"out_row": B, "out_step": 2 * B} if ends else {"out_step": B}
            self._linear(self._g, layers, at, group=B, a=source, **place)

    def _sites(self, layers: Sequence[Layer]) -> list[int]:
        """Return the dropout sites of a pass."""
        found = []
        for layer in layers:
            found.append(self._drops)
            self._drops += bool(layer.dropout)
        return found

    def _linear(self, of: Pass, layers: Sequence[Layer], at: int, **place: int) -> None:
        layer, norm = layers[at], layers[at].norm
        cols, depth = layer.weight.shape
        across = -(-cols // form.COLS)
        tiles = across if norm else across * -(-of.rows // form.ROWS)
        fields = {"tiles": tiles, "rows": of.rows, "cols": cols, "depth": depth, "out": of.outs[at]}
        if norm:
            running = {name: self._slot(getattr(norm, name)) for name in ("mean", "var", "batches")}
            fields |= {**running, "momentum": bits(norm.momentum)}
        self._put(Op.LINEAR, weight=self._at(layer.weight), **fields, **self._behind(of, layers, at), **place)

    def _behind(self, of: Pass, layers: Sequence[Layer], at: int) -> dict[str, int]:
        """Fields of what is behind a layer's product, for both directions."""
        layer, norm = layers[at], layers[at].norm
        fields = {"bias": self._at(layer.bias), "activation": form.ACTIVATIONS.index(layer.activation)}
        fields |= {"slope": bits(layer.negative_slope)}
        if norm:
            fields |= {"gamma": self._at(norm.gamma), "beta": self._at(norm.beta), "eps": bits(norm.eps)}
            fields |= {"raw": of.raws[at], "stats": of.stats[at]}
        if layer.dropout:
            fields |= {"drop": dropout.threshold(layer.dropout), "kept": bits(dropout.scale(layer.dropout))}
            fields |= {"drop_first": int(layer.dropout_first), "seed": streams.key(self.recipe.seed)}
            fields |= {"site": of.drops[at]}
        return fields

    def _judge(self, of: Pass, x_row: int, group: int) -> None:
        """The discriminator's layers below its last, on rows of samples."""
        layers = self.discriminator.layers
        of.drops = self._sites(layers)
        for at in range(len(layers) - 1):
            source, row = (self._x, x_row) if at == 0 else (of.outs[at - 1], 0)
            self._linear(of, layers, at, group=group, a=source, a_row=row, out_step=group)

    def _loss(self, of: Pass, x_row: int, sides: int, at: int) -> None:
        recipe, layers = self.recipe, self.discriminator.layers
        head, own = layers[-1], RECIPES[recipe.objective]
        source, row = (self._x, x_row) if len(layers) == 1 else (of.outs[-2], 0)
        self._put(
            Op.LOSS, rows=of.rows, depth=head.weight.shape[1], a=source, a_row=row, cols=1,
            group=0 if sides == 2 else recipe.batch_size, weight=self._at(head.weight), bias=self._at(head.bias),
            out=of.grads[-1], scale=self._scale if sides == 3 else NONE, sides=sides, at=at, seen=self._seen,
            total=recipe.n_critic, critic=int(recipe.critic), term=form.TERMS.index(own.term),
            other=form.TERMS.index(own.generator_term or own.term), label=bits(own.generator_label),
            sign=bits(own.generator_sign),
        )  # fmt: skip

    def _back(self, of: Pass, at: int, below: dict[str, int], rows: int, **place: int) -> None:
        """From the gradient in front of layer ``at``'s norm to that in front of the norm of the layer below."""
        side = self.generator if of is self._g else self.discriminator
        depth, cols = side.layers[at].weight.shape
        across = -(-cols // form.COLS)
        tiles = across if below.get("stats", NONE) != NONE else across * -(-rows // form.ROWS)
        own = {"weight": self._at(side.layers[at].weight), "rows": rows, "cols": cols, "depth": depth, "tiles": tiles}
        self._put(Op.BACK, a=of.grads[at], **{**below, **own, **place, "bias": NONE})

    def _weight(self, of: Pass, at: int, moves: int, **place: int) -> None:
        side = self.generator if of is self._g else self.discriminator
        layer = side.layers[at]
        cols, depth = layer.weight.shape
        self._put(
            Op.WEIGHT, tiles=-(-cols // form.WIDE) * -(-depth // form.WIDE), rows=of.back, cols=cols, depth=depth,
            a=of.grads[at], weight=self._at(layer.weight), bias=self._at(layer.bias), moves=moves,
            still=int(layer.norm is not None), **place,
        )  # fmt: skip

    def _back_through_critic(self, of: Pass, x_row: int, group: int, moves: int, onward: bool) -> None:
        """Backward through the discriminator, to its weights where they move, and ``onward`` to the generator."""
        B, layers = self.recipe.batch_size, self.discriminator.layers
        for at in reversed(range(len(layers))):
            if at > 0:
                below = {**self._behind(of, layers, at - 1), "moves": moves, "group": group}
                self._back(of, at, below, of.rows, b=of.outs[at - 1], out=of.grads[at - 1])
            elif onward:
                last, row = len(self.generator.layers) - 1, (self._passes - 1) * B
                below = {**self._behind(self._g, self.generator.layers, last), "moves": self._moves(self.generator)}
                place = {"a_row": of.rows - B, "b": self._x, "b_row": x_row + of.rows - B, "raw_row": row}
                place |= {"out": self._g.grads[last], "stats_row": self._passes - 1, "group": B}
                self._back(of, 0, below, B, scale=self._scale, **place)
            if moves:
                source, row = (self._x, x_row) if at == 0 else (of.outs[at - 1], 0)
                self._weight(of, at, moves, b=source, b_row=row)

    def _back_through_generator(self) -> None:
        B, layers, of = self.recipe.batch_size, self.generator.layers, self._g
        moves, row = self._moves(self.generator), (self._passes - 1) * B
        for at in reversed(range(len(layers))):
            if at > 0:
                below = {**self._behind(of, layers, at - 1), "moves": moves, "group": B}
                place = {"b": of.outs[at - 1], "b_row": row, "raw_row": row, "stats_row": self._passes - 1}
                self._back(of, at, below, B, out=of.grads[at - 1], **place)
            self._weight(of, at, moves, b=self._z if at == 0 else of.outs[at - 1], b_row=row)

    def _moves(self, side: Side) -> int:
        return 2 if side.judged else 1

    def _rate(self, side: Side) -> None:
        first, last = self._ranges[id(side)]
        judged = {"verdict": self._verdicts[id(side)], "most": bits(side.max_norm or 0.0), "guards": int(side.guards)}
        self._put(Op.RATE, first=first, last=last, values=self._slot(self.recipe.values), **judged)

    def _before(self, side: Side) -> None:
        """In front of the gradients of a side: what its steps need, where they follow at once."""
        if not side.judged:
            self._rate(side)

    def _after(self, side: Side) -> None:
        """Behind the gradients of a side: its step, where that had to wait for them."""
        if side.judged:
            first, last = self._ranges[id(side)]
            strips = sum(-(-param.size // form.STRIP) for param in self._params[first:last])
            self._put(Op.NORM, tiles=strips, first=first, last=last, verdict=self._verdicts[id(side)])
            self._rate(side)
            self._put(Op.STEP, tiles=strips, first=first, last=last, moves=1)

    def _critic_first(self) -> None:
        B = self.recipe.batch_size
        own = self._pass(self.discriminator, 2 * B, 2 * B, 2)
        for at in range(self.recipe.n_critic):
            self._move_discriminator(own, at)
        self._move_generator(2 * B * (self._passes - 1) + B)

    def _move_discriminator(self, of: Pass, at: int) -> None:
        B, side = self.recipe.batch_size, self.discriminator
        self._judge(of, 2 * B * at, B)
        self._loss(of, 2 * B * at, 1, at)
        self._before(side)
        self._back_through_critic(of, 2 * B * at, B, self._moves(side), onward=False)
        self._after(side)

    def _move_generator(self, x_row: int) -> None:
        B, side = self.recipe.batch_size, self.generator
        through = self._pass(self.discriminator, B, B)
        self._judge(through, x_row, B)
        self._loss(through, x_row, 2, self.recipe.n_critic)
        self._before(side)
        self._back_through_critic(through, x_row, B, 0, onward=True)
        self._back_through_generator()
        self._after(side)

    def _generator_first(self) -> None:
        B, sides = self.recipe.batch_size, (self.generator, self.discriminator)
        if not self.recipe.serves_both:
            self._move_generator(B)
            self._move_discriminator(self._pass(self.discriminator, 2 * B, 2 * B, 2), 0)
            return
        both = self._pass(self.discriminator, 2 * B, 2 * B, 2)
        self._judge(both, 0, B)
        self._loss(both, 0, 3, 0)
        for side in sides:
            self._before(side)
        self._back_through_critic(both, 0, B, self._moves(self.discriminator), onward=True)
        self._back_through_generator()
        for side in sides:
            self._after(side)

    def _end(self) -> None:
        recipe = self.recipe
        for buffer, kept in recipe.mended:
            self._put(Op.MEND, a=self._slot(buffer), out=self._slot(kept), cols=buffer.numel())
        moving = {"table": self._slot(recipe.table), "values": self._slot(recipe.values)}
        places = {"sums": self._slot(recipe.sums), "counts": self._slot(recipe.counts), "seen": self._seen}
        scheduled = 0 if recipe.table is None else len(recipe.table)
        self._put(Op.TICK, rows=recipe.n_critic, cols=scheduled, finite=int(recipe.finite), **moving, **places)
