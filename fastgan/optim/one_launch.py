"""What the optimisers have in common: a step of all parameters in one launch, and what else that launch can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastgan.errors import UserError
from fastgan.ops import optimizer_step as ops
from fastgan.ops.backend import by_reference, current_backend
from fastgan.ops.optimizer_table import capturing, shadow_of
from fastgan.optim.ema import EMA, Averages
from fastgan.optim.entries import entry, in_place, tensors_of, wide, wide_dtype

EXTRAS = "fastgan"  # the entry of a state_dict that torch.optim passes over
SHADOWS = (torch.float16, torch.bfloat16, torch.float32)


class OneLaunch(Optimizer):
    """Steps all parameters in one launch where the kernels run; in front of torch.optim's own class among the bases.

    Takes that class's arguments and those below; its ``state_dict`` loads into and from that class. A step may be
    captured in a CUDA graph; ``lr``, ``betas``, ``weight_decay`` and the average's decay may then be fp32 scalars on
    the device, which each replay reads anew. Elsewhere (on the CPU, for float64, complex and sparse, ``amsgrad``,
    ``differentiable``, parameters with gaps in memory) PyTorch's own step is taken, and on a GPU the guard then asks
    the host. ``foreach``, ``fused`` and ``capturable`` say nothing where the kernels run.

    Args:
        weight_clip: clamp each weight to [-weight_clip, weight_clip] after the step (WGAN; Arjovsky et al., 2017,
            algorithm 1).
        max_norm: scale gradients by min(1, max_norm / (norm + 1e-6)), the norm being that of all of them together, as
            torch.nn.utils.clip_grad_norm_ does; what stands in ``.grad`` stays as it is. One launch more.
        skip_non_finite: a NaN or an infinity in any gradient skips the step: weights, states, averages and counts stay,
            and ``skipped`` counts it. One launch more, shared with ``max_norm``.
        unscale: a scalar tensor that gradients are divided by first.
        ema: an :class:`EMA`; ``optimizer.ema`` has the averages.
        shadow: a dtype; ``optimizer.shadow(parameter)`` is a copy of the weight in it that every step refreshes, its
            rows contiguous, that of a convolution channels_last.

    Raises:
        UserError: for a value outside these.
    """

    STATES: tuple[str, str, str]  # names in ``state`` of the kernels' columns

    def __init__(
        self,
        params: Any,
        *usual: Any,
        weight_clip: float | None = None,
        max_norm: float | None = None,
        skip_non_finite: bool = False,
        unscale: Tensor | None = None,
        ema: EMA | None = None,
        shadow: torch.dtype | None = None,
        **more: Any,
    ) -> None:
        for name, bound in (("weight_clip", weight_clip), ("max_norm", max_norm)):
            if bound is not None and not bound > 0:
                raise UserError(f"{name} {bound}: it has to be above 0; None clips nothing")
        if shadow is not None and shadow not in SHADOWS:
            raise UserError(f"shadow {shadow}: it has to be torch.bfloat16, torch.float16 or torch.float32")
        super().__init__(params, *usual, **more)
        self._step_supports_amp_scaling = True  # GradScaler leaves unscaling and skipping to the step
        self.weight_clip, self.max_norm, self.skip_non_finite = weight_clip, max_norm, skip_non_finite
        self.unscale, self.shadow_dtype, self._ema = unscale, shadow, ema
        self._counters: Tensor | None = None
        self._begin()

    def _begin(self) -> None:
        self._norm: Tensor | None = None
        self._plan: tuple[object, ops.Plan, dict[Tensor, None], list[tuple[dict[str, Any], str, Tensor]]] | None = None
        self._shadows: dict[Tensor, Tensor] = {}
        self._held: list[object] = []  # what captured graphs go on reading

    @property
    def skipped(self) -> Tensor:
        """How many steps were skipped: an int64 scalar on the device."""
        return self._counts()[0]

    @property
    def norm(self) -> Tensor | None:
        """The norm of all gradients at the last step, on the device; None without ``max_norm``."""
        return self._norm

    @property
    def averaging(self) -> bool:
        """Whether it keeps averages of the weights."""
        return self._ema is not None

    @property
    def ema(self) -> Averages:
        """The averaged weights. Raises a ``UserError`` where none were asked for."""
        if self._ema is None:
            raise UserError(f"this {type(self).__name__} averages nothing: construct it with ema=EMA(0.999)")
        return Averages(self._parameters, lambda parameter: self.state.get(parameter, {}).get("ema"), self.refresh)

    def shadow(self, parameter: Tensor) -> Tensor:
        """Return the copy of a weight that every step refreshes in place."""
        if self.shadow_dtype is None:
            raise UserError(f"this {type(self).__name__} keeps no shadow: construct it with shadow=torch.bfloat16")
        if parameter not in self._shadows:
            self._shadows[parameter] = shadow_of(parameter, self.shadow_dtype)
        return self._shadows[parameter]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights into their shadows: for when somebody else has changed them, such as a checkpoint."""
        for parameter, shadow in self._shadows.items():
            shadow.copy_(parameter)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; return what ``closure``, called first where it is given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if any(group["differentiable"] for group in self.param_groups) or self._plain():
            self._by_torch(self.param_groups, {})
        else:
            with torch.no_grad():
                self._advance()
        return loss

    def _plain(self) -> bool:
        """Whether torch.optim's own step on the CPU is all there is to do: planning it would cost as much again."""
        extras = (self.weight_clip, self.max_norm, self.unscale, self._ema, self.shadow_dtype)
        if self.skip_non_finite or any(extra is not None for extra in extras):
            return False
        first = next(self._parameters())
        told = vars(self).get("grad_scale") is not None or vars(self).get("found_inf") is not None
        return not told and not first.is_cuda and by_reference(ops.OP, first)

    def _advance(self) -> None:
        plan, theirs = self._planned()
        scale, found_inf = self._scale()
        gradients = {p: p.grad for p in self._parameters() if p.grad is not None}
        ours = {p: plan.laid(p, g) for p, g in gradients.items() if p not in theirs} if plan.tables else {}
        moving, scalars = self._moving(plan, ours) if plan.tables else ([], [])

        verdict = None
        wanted = self.max_norm is not None or self.skip_non_finite
        if wanted and len(plan.tables) == 1 and len(ours) == len(gradients):
            verdict = plan.judge(moving[0], unscale=scale, most=self.max_norm, guards=self.skip_non_finite)
        elif gradients and (wanted or (found_inf is not None and theirs)):
            verdict = ops.judged([*gradients.values()], scale, found_inf, self.max_norm, self.skip_non_finite)
        pair = None if verdict is None else verdict.pair
        self._norm = None if verdict is None or self.max_norm is None else verdict.norm

        asks = self.skip_non_finite or found_inf is not None
        if theirs and not (asks and pair is not None and self._skips(pair, counts=not plan.tables)):
            given = {p: ops.scaled(g, scale, pair) for p, g in gradients.items() if p in theirs}
            self._step_theirs(theirs, {p: g for p, g in given.items() if g is not p.grad})
            if self._ema is not None and not plan.tables:
                self._counts()[1] += 1
        if plan.tables:
            averages, clips = self._ema is not None, self.weight_clip is not None
            told = {"verdict": None if pair is None else pair.float(), "unscale": scale, "found_inf": found_inf}
            plan.step(moving, self._counts(), averages=averages, clips=clips, scalars=bool(scalars), **told)

    def _moving(self, plan: ops.Plan, gradients: dict[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Put on the device what differs from step to step; return it, and the scalars there that belong to it."""
        groups = [(*self._numbers(group), *self._common(group)) for group in self.param_groups]
        bits, scalars = ops.bits_of(groups, self._device())
        moving = plan.send(gradients, bits)
        if capturing(self._device()):
            self._held += (plan, *moving, *scalars, *gradients.values())
        return moving, scalars

    def _skips(self, pair: Tensor, counts: bool) -> bool:
        """Ask the host whether to skip what PyTorch steps."""
        if capturing(pair.device):
            raise UserError(
                "some of these parameters go by PyTorch's own step, whose guard asks the host: it cannot be captured;"
                " leave out the guard, or what brings that step: amsgrad, float64, gaps in memory"
            )
        skips = bool(pair[1] != 0)
        if skips and counts:
            self._counts()[0] += 1
        return skips

    def _step_theirs(self, theirs: dict[Tensor, None], gradients: Mapping[Tensor, Tensor]) -> None:
        """Step some parameters by PyTorch, and do after it what the kernels do in their launch."""
        averages = {}
        if self._ema is not None:  # a new average begins with the weights in front of the first step
            known = {p: self.state.get(p, {}) for p in theirs if p.is_floating_point()}
            averages = {p: s["ema"] if "ema" in s else wide(p) for p, s in known.items() if s or p.grad is not None}
        own = [{**group, "params": [p for p in group["params"] if p in theirs]} for group in self.param_groups]
        self._by_torch(own, gradients)
        for p in filter(Tensor.is_floating_point, theirs):
            if self.weight_clip is not None:
                p.clamp_(-self.weight_clip, self.weight_clip)
            if p in averages:
                assert self._ema is not None
                ops.follow(averages[p], p, self._ema.decay, self._ema.warmup, self._counts()[1].to(p.device))
                self.state[p]["ema"] = averages[p]
            if self.shadow_dtype is not None:
                self.shadow(p).copy_(p)

    def _by_torch(self, groups: list[dict[str, Any]], gradients: Mapping[Tensor, Tensor]) -> None:
        """Make torch.optim's own step of these groups, with other gradients where some are given."""
        function = super().step.__func__  # type: ignore[attr-defined]
        function = function.__wrapped__ if getattr(function, "hooked", False) else function  # hooks have been called
        own, kept = self.param_groups, {p: p.grad for p in gradients}
        amp: dict[str, Any] = {at: vars(self).pop(at) for at in ("grad_scale", "found_inf") if at in vars(self)}
        self.param_groups = groups
        try:
            for p, gradient in gradients.items():
                p.grad = gradient
            function(self)
        finally:
            self.param_groups = own
            vars(self).update(amp)
            for p, former in kept.items():
                p.grad = former

    def _rule(self, group: Mapping[str, Any]) -> ops.Rule | None:
        """Return the kernels' rule for a group; None where PyTorch's own step is taken."""
        raise NotImplementedError

    def _numbers(self, group: Mapping[str, Any]) -> tuple[ops.Number, ...]:
        """Return the first seven numbers of a group, in the kernels' order."""
        raise NotImplementedError

    def _common(self, group: Mapping[str, Any]) -> tuple[ops.Number, ...]:
        """Return the rest of them."""
        ema = self._ema or EMA(1.0)
        return (-1.0 if group["maximize"] else 1.0, ema.decay, ema.warmup, self.weight_clip or 0.0)

    def _planned(self) -> tuple[ops.Plan, dict[Tensor, None]]:
        """Return the launches, and the parameters that PyTorch steps; what is known is kept while nothing moves."""
        kinds: list[object] = []
        addresses = []
        for p in self._parameters():
            gradient = p.grad
            odd = gradient is not None and (gradient.layout != torch.strided or gradient.dtype != p.dtype)
            kinds.append("odd" if odd else gradient is not None or p in self.state)
            addresses.append(p.data_ptr() if p.layout == torch.strided else 0)
        rules = [self._rule(group) for group in self.param_groups]
        sizes = [len(group["params"]) for group in self.param_groups]
        options = (self.weight_clip is not None, self._ema is not None, self.shadow_dtype)
        key = (current_backend(), options, rules, sizes, addresses, kinds)
        if self._plan is None or self._plan[0] != key or any(s.get(name) is not t for s, name, t in self._plan[3]):
            self._plan = key, *self._new_plan(rules, kinds)
        return self._plan[1], self._plan[2]

    def _new_plan(self, rules: list[Any], kinds: list[object]) -> Any:
        """Share the parameters out between the kernels and PyTorch, and begin the states that the kernels need."""
        theirs, entries = [], []
        owners = [at for at, group in enumerate(self.param_groups) for _ in group["params"]]
        for p, at, kind in zip(self._parameters(), owners, kinds, strict=True):
            rule, always = rules[at], self.weight_clip is not None or self.shadow_dtype is not None
            if not kind and not always:
                continue
            if rule is None or kind == "odd" or p.device != self._device() or not ops.takes(p):
                theirs.append(p)
                continue
            shadow = None if self.shadow_dtype is None else self.shadow(p)
            needed = rule.states if kind else (False, False, False)
            state = self.state[p] if kind else {}
            averages = self._ema is not None and bool(kind)
            entries.append(entry(p, state, self.STATES, needed, averages, shadow=shadow, group=at))
        plan = ops.Plan(rules, entries, self.shadow_dtype)
        states = [(self.state[own.param], *named) for own in entries for named in tensors_of(own, self.STATES)]
        return plan, dict.fromkeys(theirs), states

    def _scale(self) -> tuple[Tensor | None, Tensor | None]:
        """Return what gradients are divided by, and a GradScaler's flag: fp32 (1) on the device, or None."""
        scaler, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        scale = self.unscale if scaler is None else scaler if self.unscale is None else scaler * self.unscale
        device = self._device()
        placed = [None if t is None else t.to(device, torch.float32).reshape(1) for t in (scale, found_inf)]
        return placed[0], placed[1]

    def _parameters(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    def _device(self) -> torch.device:
        device: torch.device = next(self._parameters()).device
        return device

    def _counts(self) -> Tensor:
        if self._counters is None or self._counters.device != self._device():
            none = torch.zeros(ops.COUNTERS, dtype=torch.int64, device=self._device())
            self._counters = none if self._counters is None else self._counters.to(self._device())
        return self._counters

    def state_dict(self) -> dict[str, Any]:
        """Return torch.optim's state, the averages beside the moments, and the counts in an entry of their own."""
        skipped, averaged = self._counts().unbind()
        return {**super().state_dict(), EXTRAS: {"skipped": skipped, "averaged": averaged}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class or torch.optim's own saved; averages that are not there begin with the weights.

        States and scalars on the device that are there already take what is loaded in their place: steps that were
        captured, and schedules that write into those scalars, go on with it.
        """
        groups, states = [*map(dict, self.param_groups)], {p: dict(state) for p, state in self.state.items()}
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        most = 0.0
        for index, p in zip(saved, self._parameters(), strict=True):
            state = state_dict["state"].get(index, {})
            if "ema" in state:  # PyTorch has rounded it to the parameter's dtype
                self.state[p]["ema"] = state["ema"].to(p.device, wide_dtype(p))
                most = max(most, float(state.get("step", 0.0)))
        loaded = zip(states.values(), (self.state[p] for p in states), strict=True)
        for former, now in chain(zip(groups, self.param_groups, strict=True), loaded):
            now.update({name: in_place(former[name], now[name]) for name in former.keys() & now.keys()})
        extras = state_dict.get(EXTRAS, {"skipped": 0, "averaged": most})
        for at, name in enumerate(("skipped", "averaged")):
            self._counts()[at] = int(extras[name])

    def __getstate__(self) -> dict[str, Any]:
        names = ("weight_clip", "max_norm", "skip_non_finite", "unscale", "shadow_dtype", "_ema", "_counters")
        own = {name: vars(self)[name] for name in (*names, "_step_supports_amp_scaling")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = {name: value for name, value in vars(self).items() if name in ("_shadows", "_held")}
        super().__setstate__(state)
        self._begin()
        vars(self).update(kept)
