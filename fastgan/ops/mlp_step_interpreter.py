"""Runs a phase table with plain PyTorch, phase by phase: what ``csrc/mlp_step.cu`` computes, and proof of the table.

Results are stored in the dtypes of their slots: with activations in bf16 every product's operands are rounded as the
kernel rounds them; sums are fp32, and fp64 where activations are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from fastgan.ops import gan_loss_formulas, gan_loss_slopes, streams
from fastgan.ops.activation import activate, times_derivative
from fastgan.ops.gan_loss_formulas import Form
from fastgan.ops.latent import latent
from fastgan.ops.mlp_step_form import ACTIVATIONS, LATENTS, NONE, STRIP, TERMS, Op, Param, Phase, params, phases, real
from fastgan.ops.mlp_step_optimizer import SKIP, advance, rate
from fastgan.ops.real_batch import real_batch
from fastgan.ops.tick import scheduled

DROPOUT = 6  # the purpose of these draws, beside those of streams
SMALLEST_SEED = 1e-20  # as fastgan.train.step has it
LOSS_D, LOSS_G, REAL, FAKE = range(4)  # what is seen at a loss, as the first that a meter sums


class Interpreter:
    """A table, its slots and its optimisers' numbers.

    Args:
        table, parameters: as mlp_step_form packs them.
        slots: tensors, contiguous.
        rates: (parameters, RATES), fp64 here.
        numbers: of each group, asked for at each step.
    """

    def __init__(
        self,
        table: Tensor,
        parameters: Tensor,
        slots: Sequence[Tensor],
        rates: Tensor,
        numbers: Callable[[], Sequence[Sequence[float]]],
    ) -> None:
        self.phases, self.params = phases(table), params(parameters)
        self.slots, self.rates, self.numbers = slots, rates, numbers
        self._do: dict[int, Callable[[Phase], None]] = {
            Op.REAL: self._real,
            Op.LATENT: self._latent,
            Op.LINEAR: self._linear,
            Op.LOSS: self._loss,
            Op.BACK: self._back,
            Op.WEIGHT: self._weight,
            Op.RATE: self._rate,
            Op.NORM: self._norm,
            Op.STEP: self._step,
            Op.TICK: self._tick,
            Op.MEND: self._mend,
        }

    @torch.no_grad()
    def run(self, iterations: int = 1, order: random.Random | None = None) -> None:
        """Perform iterations. ``order`` shuffles the phases of each stage, which may run in any."""
        for _ in range(iterations):
            for _, stage in groupby(self.phases, key=lambda phase: phase.stage):
                own = list(stage)
                if order is not None:
                    order.shuffle(own)
                for phase in own:
                    self._do[phase.op](phase)

    def _real(self, p: Phase) -> None:
        """Out: rows of samples that the clock has come to."""
        images, out = self.slots[p.a], self.slots[p.out][p.out_row :][: p.rows]
        shaped = images.view(p.total, 1, -1, p.flip) if p.flip else images.view(p.total, -1)
        how = {"batch_size": p.rows, "seed": p.seed, "site": (p.sites, p.site), "flip": p.flip > 0}
        batch = real_batch(shaped, self.slots[p.clock], dtype=_drawn(out.dtype), **how)  # type: ignore[arg-type]
        assert isinstance(batch, Tensor)
        out.copy_(batch.flatten(1))

    def _latent(self, p: Phase) -> None:
        """Out: latents."""
        out, site = self.slots[p.out][p.out_row :][: p.rows], (p.sites, p.site)
        dtype, kind = _drawn(out.dtype), LATENTS[p.kind]
        out.copy_(latent(self.slots[p.clock], shape=(p.rows, p.cols), seed=p.seed, site=site, kind=kind, dtype=dtype))

    def _linear(self, p: Phase) -> None:
        """Out [rows, cols] by groups = dropout(phi(norm(a [rows, depth] weight [cols, depth]^T + bias)))."""
        a = self._rows(p.a, p.a_row, p.rows)
        pre = a @ self._operand(p.weight, a).T
        if p.bias != NONE:
            pre += self._value(p.bias)
        for at in range(p.rows // p.group):
            v = pre[at * p.group :][: p.group]
            if p.stats != NONE:
                v = self._normalised(p, v, at)
            keep = self._keep(p, at * p.group, p.group) if p.drop else None
            if keep is not None and p.drop_first:
                v = torch.where(keep, v * real(p.kept), 0.0)
            v = activate(v, ACTIVATIONS[p.activation], real(p.slope))
            if keep is not None and not p.drop_first:
                v = torch.where(keep, v * real(p.kept), 0.0)
            self.slots[p.out][p.out_row + at * p.out_step :][: p.group] = v.to(self.slots[p.out].dtype)
        if p.batches != NONE:
            self.slots[p.batches] += p.rows // p.group

    def _normalised(self, p: Phase, v: Tensor, at: int) -> Tensor:
        """A group after its norm, whose statistics are those of the stored, rounded output."""
        self.slots[p.raw][p.raw_row + at * p.group :][: p.group] = v.to(self.slots[p.raw].dtype)
        v = self._rows(p.raw, p.raw_row + at * p.group, p.group)
        var, mean = torch.var_mean(v, 0, correction=0)
        scale = (var + real(p.eps)).rsqrt()
        self.slots[p.stats][p.stats_row + at] = torch.stack((mean, scale)).to(self.slots[p.stats].dtype)
        if p.mean != NONE:
            unbiased = var * (p.group / (p.group - 1))
            self.slots[p.mean].lerp_(mean.to(self.slots[p.mean].dtype), real(p.momentum))
            self.slots[p.var].lerp_(unbiased.to(self.slots[p.var].dtype), real(p.momentum))
        v = (v - mean) * scale
        if p.gamma != NONE:
            v = v * self._value(p.gamma)
        return v + self._value(p.beta) if p.beta != NONE else v

    def _loss(self, p: Phase) -> None:
        """Out [rows]: slopes of all logits; of rows, ``group`` are real. Scale [rows]: from D's slopes to G's."""
        a = self._rows(p.a, p.a_row, p.rows)
        logits = a @ self._operand(p.weight, a)[0]
        if p.bias != NONE:
            logits += self._value(p.bias)
        logits = logits.to(self.slots[p.a].dtype).to(logits.dtype)
        x, y = logits[: p.group], logits[p.group :]
        seen, out = self.slots[p.seen], self.slots[p.out]
        ours = Form(TERMS[p.term])
        label = real(p.label)
        theirs = Form(TERMS[p.other], labels=(1 - label, label), sign=real(p.sign))
        if p.sides & 1:
            slopes = gan_loss_slopes.slopes(ours, x, y, None, None, None)
            seen[p.at, LOSS_D] = gan_loss_formulas.loss(ours, x, y, None, None, None)
            seen[p.at, REAL], seen[p.at, FAKE] = ((t if p.critic else t.sigmoid()).mean() for t in (x, y))
        if p.sides & 2:
            _, slope = gan_loss_slopes.slopes(theirs, None, y, None, None, None)
            seen[p.total, LOSS_G] = gan_loss_formulas.loss(theirs, None, y, None, None, None)
            assert slope is not None
            if p.sides & 1:
                assert slopes[1] is not None
                seeds = torch.where(slopes[1].abs() < SMALLEST_SEED, SMALLEST_SEED, slopes[1]).to(out.dtype)
                self.slots[p.scale][p.group : p.rows, 0] = slope / seeds.to(slope.dtype)
                slopes = slopes[0], seeds
            else:
                slopes = None, slope
        out[: p.rows] = torch.cat([t.to(out.dtype) for t in slopes if t is not None]).view(-1, 1)

    def _back(self, p: Phase) -> None:
        """Out [rows, cols] = through norm and activation of b [rows, cols], a [rows, depth] weight [depth, cols]."""
        a = self._rows(p.a, p.a_row, p.rows)
        v = a @ self._operand(p.weight, a)
        if p.scale != NONE:
            v *= self.slots[p.scale][p.a_row :][: p.rows].to(v.dtype)
        saved, kept = self._rows(p.b, p.b_row, p.rows), real(p.kept)
        if p.drop:
            v = torch.where(self._keep(p, 0, p.rows), v * kept, 0.0)
            if not p.drop_first and kept:
                saved = saved / kept
        v = times_derivative(v, saved, ACTIVATIONS[p.activation], real(p.slope)) if p.activation else v
        if p.stats != NONE:
            v = self._through_norm(p, v)
        self.slots[p.out][p.out_row :][: p.rows] = v.to(self.slots[p.out].dtype)

    def _through_norm(self, p: Phase, v: Tensor) -> Tensor:
        groups = p.rows // p.group
        v = v.view(groups, p.group, p.cols)
        mean, scale = self.slots[p.stats][p.stats_row :][:groups, :, None].to(v.dtype).unbind(1)
        x = (self._rows(p.raw, p.raw_row, p.rows).view_as(v) - mean) * scale
        to_beta, to_gamma = v.sum(1, keepdim=True), (v * x).sum(1, keepdim=True)
        g = (v - to_beta / p.group - x * (to_gamma / p.group)) * scale
        if p.gamma != NONE:
            g = g * self._value(p.gamma)
        self._move(p.gamma, to_gamma.sum((0, 1)), p.moves)
        self._move(p.beta, to_beta.sum((0, 1)), p.moves)
        return g.view(p.rows, p.cols)

    def _weight(self, p: Phase) -> None:
        """Gradients: of the weight [cols, depth] = a [rows, cols]^T b [rows, depth], of the bias the sum of a."""
        a, b = self._rows(p.a, p.a_row, p.rows), self._rows(p.b, p.b_row, p.rows)
        self._move(p.weight, a.T @ b, p.moves)
        to_bias = a.sum(0)
        self._move(p.bias, torch.zeros_like(to_bias) if p.still else to_bias, p.moves)

    def _move(self, at: int, gradient: Tensor, moves: int) -> None:
        """Step a parameter by its gradient, or put that into memory."""
        if at == NONE or not moves:
            return
        param = self.params[at]
        if moves == 1:
            advance(param, self.slots, self.rates[at], gradient)
        else:
            into = self.slots[param.gradient]
            into.copy_(gradient.view(into.shape))

    def _rate(self, p: Phase) -> None:
        """What parameters ``first`` to ``last`` share in a step; their steps and averages are counted."""
        groups, own = self.numbers(), self.params[p.first : p.last]
        factor, skip = 1.0, False
        if p.verdict != NONE:
            squares, spoilt = self.slots[p.verdict].sum(0).tolist()
            norm, skip = squares**0.5, bool(p.guards and spoilt)
            if real(p.most):
                factor = min(1.0, real(p.most) / (norm + 1e-6)) if norm == norm else norm
        counters = self.slots[own[0].counters]
        for at, param in enumerate(own, p.first):
            step = self.slots[param.step]
            step += 0 if skip else 1
            self.rates[at] = torch.tensor(
                rate(param, groups[param.group], float(step), int(counters[1]), factor), dtype=self.rates.dtype
            )
            self.rates[at, SKIP] = float(skip)
        counters[0] += int(skip)
        counters[1] += int(not skip and any(param.average != NONE for param in own))

    def _norm(self, p: Phase) -> None:
        """Verdict [strips, 2]: squares of gradients of parameters ``first`` to ``last``, and 1 where one is spoilt."""
        for param in self.params[p.first : p.last]:
            for at, strip in enumerate(self.slots[param.gradient].flatten().split(STRIP), param.strip):
                told = torch.stack((strip.square().sum(), (~strip.isfinite()).any().to(strip)))
                self.slots[p.verdict][at] = told

    def _step(self, p: Phase) -> None:
        for at in range(p.first, p.last):
            advance(self.params[at], self.slots, self.rates[at], self.slots[self.params[at].gradient])

    def _tick(self, p: Phase) -> None:
        """Sum what was seen at ``rows`` updates of D and one of G; move the clock and what is scheduled."""
        seen, sums, counts = self.slots[p.seen], self.slots[p.sums], self.slots[p.counts]
        for at in range(p.rows + 1):
            for what in (LOSS_D, REAL, FAKE) if at < p.rows else (LOSS_G,):
                if not p.finite or bool(seen[at, what].isfinite()):
                    sums[what] += seen[at, what]
                    counts[what] += 1
        self.slots[p.clock] += 1
        if p.table != NONE:
            self.slots[p.values].copy_(scheduled(self.slots[p.table], self.slots[p.clock]))

    def _mend(self, p: Phase) -> None:
        """A buffer: where it is not finite it takes back what it had behind the last iteration; Out: kept of it."""
        buffer, kept = self.slots[p.a], self.slots[p.out]
        kept.copy_(torch.where(buffer.isfinite(), buffer, kept))
        buffer.copy_(kept)

    def _rows(self, slot: int, first: int, rows: int) -> Tensor:
        """Rows of a matrix, in the dtype of sums."""
        return _wide(self.slots[slot][first:][:rows])

    def _operand(self, at: int, other: Tensor) -> Tensor:
        """A weight as a product reads it, rounded as its other operand was."""
        param: Param = self.params[at]
        weight = self.slots[param.shadow if param.shadow != NONE else param.value]
        return weight.to(self._rounded).to(other.dtype)

    @property
    def _rounded(self) -> torch.dtype:
        """The dtype of activations: that of the first latents."""
        return self.slots[next(phase.out for phase in self.phases if phase.op == Op.LATENT)].dtype

    def _value(self, at: int) -> Tensor:
        return _wide(self.slots[self.params[at].value])

    def _keep(self, p: Phase, first: int, rows: int) -> Tensor:
        """Which elements of rows of a layer's pass stay."""
        count = streams.count(self.slots[p.clock], (p.sites, p.site))
        rng = streams.rng(DROPOUT, count, p.seed)
        begin, total = (p.raw_row + first) * p.cols, rows * p.cols
        words = streams.words(rng, begin % 4 + total, begin // 4).flatten()[begin % 4 :][:total]
        return (words >= p.drop).view(rows, p.cols)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _drawn(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which draws are made for a buffer."""
    return torch.float32 if dtype == torch.float64 else dtype
