"""One step of an optimiser over all parameters of a network, in one launch: whatever their number and sizes.

    g   = sign * g / unscale * coefficient          p, states = one step of the rule (``kernels/optimizer_rules.py``)
    p   = min(max(p, -clip), clip)                  ema = lerp(ema, p, max(1 - decay, (warmup - 1) / (warmup + t)))
    shadow = p in another dtype and memory order    step = step + 1, by the last program

Contract. Parameters of one dtype (bf16, fp16, fp32), dense in any order of dimensions; gradients and states lie as
their parameter does and have its dtype; averages are fp32; steps are fp32 scalars. Where they lie a ``table`` tells,
int64 [tensors, COLUMNS] of addresses (0: there is none) and sizes. What may differ from step to step stands in
``moving``, int64: the gradients' addresses (0: no gradient, the parameter stays, its average moves), then each group's
numbers. ``blocks``, int32 [programs, 2], tells each program its tensor and its place therein. Sizes may be 0 and exceed
2^31; addresses need no alignment, but where 16 divides all of a tensor's its accesses are of 16 bytes.

``verdict``, fp32 [2], from ``kernels/optimizer_norm.py``: what gradients are multiplied by, and whether to skip all.
``found_inf``, not 0: skip as well. A skipped step writes nothing but its count. ``counters``, int64 [2]: steps skipped,
averages formed. What is written: param, states, ema, shadow in place; no two of a launch may overlap.

Bytes of an element, fp32 Adam: 28; 36 with an average; 38 with a bf16 shadow too, where torch.optim's fused Adam (28),
an average (12) and a cast (6) take 46. FLOPs: about 30, of no account beside them.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): the caps, 96, and 128
where weights are averaged or clipped, shadows turned or gradients centred; nothing spilled.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, Tickets, submit
from fastgan.kernels.optimizer_form import Form, Rule
from fastgan.kernels.optimizer_rules import CLIP, DECAY, SIGN, SLOTS, WARMUP, advance, lerp, number, shared
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

# columns of the table: addresses; elements, and how many of them aligned vectors cover; the group; the shadow's order
PARAM, FIRST, SECOND, THIRD, EMA, SHADOW, STEP, SIZE, WHOLE, GROUP, CHANNELS, TAPS = map(tl.constexpr, range(12))
COLUMNS = tl.constexpr(12)
BLOCK = 512  # elements that a program takes at a time: 16 bytes of fp32 a thread
WARPS = 4
REGISTERS, MOST_REGISTERS = 96, 128  # caps: five programs on an SM, four with extras: 40 KB of loads on their way
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _pointer(address, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(TYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _state(row, COLUMN: tl.constexpr, TYPE: tl.constexpr, at, inside, USED: tl.constexpr, ALIGNED: tl.constexpr):
    """A state's pointers and values; places and zeros where the rule has none."""
    if USED:
        pointers = _pointer(tl.load(row + COLUMN), TYPE, ALIGNED) + at
        values = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    else:
        pointers, values = at, tl.zeros(at.shape, tl.float32)
    return pointers, values


@triton.jit
def _elements(
    row, grad, at, inside, moves, factor, numbers, weight, clip,
    TYPE: tl.constexpr, AVERAGE: tl.constexpr, SHADE: tl.constexpr, TURNED: tl.constexpr, CLIPS: tl.constexpr,
    RULE: tl.constexpr, DECOUPLED: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, CENTERED: tl.constexpr,
    ONE: tl.constexpr, TWO: tl.constexpr, THREE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Advance the elements ``at`` [BLOCK] that are ``inside`` a parameter."""
    moved = inside & moves
    params = _pointer(tl.load(row + PARAM), TYPE, ALIGNED) + at
    p = tl.load(params, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(_pointer(grad, TYPE, ALIGNED) + at, mask=moved, other=0.0).to(tl.float32) * factor
    firsts, first = _state(row, FIRST, TYPE, at, moved, ONE, ALIGNED)
    seconds, second = _state(row, SECOND, TYPE, at, moved, TWO, ALIGNED)
    thirds, third = _state(row, THIRD, TYPE, at, moved, THREE, ALIGNED)
    if AVERAGE:
        average = tl.load(row + EMA)
        averages = _pointer(average, tl.float32, ALIGNED) + at
        averaged = inside & (average != 0)
        before = tl.load(averages, mask=averaged, other=0.0)

    new, first, second, third = advance(
        p, g, first, second, third, numbers, RULE, DECOUPLED, MOMENTUM, NESTEROV, CENTERED
    )
    p = tl.where(moves, new, p)
    if CLIPS:  # a NaN stays one
        p = tl.where(p > clip, clip, tl.where(p < -clip, -clip, p))
    stored = p.to(TYPE)
    tl.store(params, stored, mask=inside if CLIPS else moved)
    if ONE:
        tl.store(firsts, first.to(TYPE), mask=moved)
    if TWO:
        tl.store(seconds, second.to(TYPE), mask=moved)
    if THREE:
        tl.store(thirds, third.to(TYPE), mask=moved)
    if AVERAGE:
        tl.store(averages, lerp(before, stored.to(tl.float32), weight), mask=averaged)
    if SHADE is not None:
        shadow = tl.load(row + SHADOW)
        place = at
        if TURNED:  # [outer, channels, taps] becomes [outer, taps, channels]
            channels, taps = tl.load(row + CHANNELS), tl.load(row + TAPS)
            outer, inner = at // (channels * taps), at % (channels * taps)
            place = (outer * taps + inner % taps) * channels + inner // taps
        shadows = _pointer(shadow, SHADE, ALIGNED) + place
        tl.store(shadows, stored.to(tl.float32).to(SHADE), mask=inside & (shadow != 0))


@triton.jit(do_not_specialize=["tensors", "programs", "rounds"])
def optimizer_step_kernel(
    table, blocks, moving, counters, verdict, unscale, found_inf, ticket, tensors, programs, rounds,
    TYPE: tl.constexpr, AVERAGE: tl.constexpr, SHADE: tl.constexpr, TURNED: tl.constexpr, CLIPS: tl.constexpr,
    SCALARS: tl.constexpr, COUNTS: tl.constexpr,
    RULE: tl.constexpr, DECOUPLED: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, CENTERED: tl.constexpr,
    ONE: tl.constexpr, TWO: tl.constexpr, THREE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``rounds`` blocks of one tensor; the last program to end counts the steps."""
    tensor = tl.load(blocks + 2 * tl.program_id(0))
    chunk = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64)
    row = table + tensor * COLUMNS
    grad = tl.load(moving + tensor)
    size, whole = tl.load(row + SIZE), tl.load(row + WHOLE)
    group = moving + tensors + tl.load(row + GROUP) * (2 * SLOTS)

    go = tensors > 0
    factor = number(group, SIGN, False).to(tl.float32)
    if unscale is not None:
        factor = factor / tl.load(unscale)
    if verdict is not None:
        factor *= tl.load(verdict)
        go = go & (tl.load(verdict + 1) == 0)
    if found_inf is not None:
        go = go & (tl.load(found_inf) == 0)
    address = tl.load(row + STEP)
    steps = tl.load(address.to(tl.pointer_type(tl.float32)), mask=address != 0, other=0.0) + 1
    numbers = shared(group, steps, RULE, DECOUPLED, SCALARS)
    weight, clip = 0.0, 0.0
    if AVERAGE:
        warmup = number(group, WARMUP, SCALARS).to(tl.float32)
        rising = (warmup - 1) / tl.maximum(warmup + tl.load(counters + 1).to(tl.float32), 1.0)
        weight = tl.maximum((1 - number(group, DECAY, SCALARS)).to(tl.float32), tl.where(warmup > 0, rising, 0.0))
    if CLIPS:
        clip = number(group, CLIP, SCALARS).to(tl.float32)

    if go:
        for turn in range(rounds):
            start = (chunk * rounds + turn) * BLOCK
            at = start + tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
            if (start + BLOCK <= whole) & (grad % 16 == 0):
                inside = tl.full([BLOCK], True, tl.int1)
                _elements(
                    row, grad, at, inside, grad != 0, factor, numbers, weight, clip,
                    TYPE, AVERAGE, SHADE, TURNED, CLIPS, RULE, DECOUPLED, MOMENTUM, NESTEROV, CENTERED,
                    ONE, TWO, THREE, True,
                )  # fmt: skip
            elif start < size:
                _elements(
                    row, grad, at, at < size, grad != 0, factor, numbers, weight, clip,
                    TYPE, AVERAGE, SHADE, TURNED, CLIPS, RULE, DECOUPLED, MOMENTUM, NESTEROV, CENTERED,
                    ONE, TWO, THREE, False,
                )  # fmt: skip

    if arrives_last(ticket, programs):
        for done in range(0, tensors, BLOCK):
            which = done + tl.arange(0, BLOCK)  # [BLOCK]
            there = which < tensors
            scalars = tl.load(table + which * COLUMNS + STEP, mask=there, other=0)
            grads = tl.load(moving + which, mask=there, other=0)
            counted = there & (scalars != 0) & (grads != 0) & go
            pointers = scalars.to(tl.pointer_type(tl.float32))
            tl.store(pointers, tl.load(pointers, mask=counted, other=0.0) + 1, mask=counted)
        if COUNTS:
            tl.store(counters, tl.load(counters) + tl.where(go, 0, 1))
            if AVERAGE:
                tl.store(counters + 1, tl.load(counters + 1) + tl.where(go, 1, 0))


def step_launch(
    table: Tensor,
    blocks: Tensor,
    moving: Tensor,
    counters: Tensor,
    verdict: Tensor | None,
    unscale: Tensor | None,
    found_inf: Tensor | None,
    rounds: int,
    form: Form,
) -> Launch:
    """Prepare one step of all tensors of the table."""
    programs = blocks.shape[0]
    arguments: dict[str, object] = {"table": table, "blocks": blocks, "moving": moving, "counters": counters}
    arguments |= {"verdict": verdict, "unscale": unscale, "found_inf": found_inf, "ticket": Tickets(1)}
    arguments |= {"tensors": table.shape[0], "programs": programs, "rounds": rounds}
    rule = form.rule
    constexprs: dict[str, object] = {"TYPE": TYPES[form.param], "AVERAGE": form.average, "BLOCK": BLOCK}
    constexprs |= {"SHADE": None if form.shadow is None else TYPES[form.shadow], "TURNED": form.turned}
    constexprs |= {"CLIPS": form.clip, "SCALARS": form.scalars, "COUNTS": form.counts}
    constexprs |= {"RULE": rule.name, "DECOUPLED": rule.decoupled, "MOMENTUM": rule.momentum}
    constexprs |= {"NESTEROV": rule.nesterov, "CENTERED": rule.centered}
    constexprs |= dict(zip(("ONE", "TWO", "THREE"), rule.states, strict=True))
    heavy = form.average or form.clip or form.turned or rule.centered
    registers = MOST_REGISTERS if heavy else REGISTERS
    return Launch(optimizer_step_kernel, arguments, constexprs, programs, Config(1, BLOCK, 1, WARPS, registers, 1))


def optimizer_step(
    table: Tensor,
    blocks: Tensor,
    moving: Tensor,
    counters: Tensor,
    form: Form,
    *,
    rounds: int,
    verdict: Tensor | None = None,
    unscale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Make one step in place, as the file's contract has it.

    Args:
        table: int64 [tensors, COLUMNS].
        blocks: int32 [programs, 2], tensor and place; a program takes ``rounds`` blocks of BLOCK elements from
            place * rounds * BLOCK on.
        moving: int64 [tensors + groups * SLOTS * 2].
        counters: int64 [2].
        form: rule, dtypes, and what else the step does.
        rounds: at least 1.
        verdict: fp32 [2], a factor and whether to skip; or None.
        unscale: fp32 scalar that gradients are divided by; or None.
        found_inf: fp32 scalar; a step is skipped where it is not 0; or None.
    """
    submit(step_launch, (table, blocks, moving, counters, verdict, unscale, found_inf), (), rounds, form)


_ADAM, _SGD = Rule("adam"), Rule("sgd", momentum=True)
_RULES = (
    _ADAM,
    Rule("adam", decoupled=True),
    *(Rule("rmsprop", momentum=momentum, centered=centered) for momentum, centered in product((False, True), repeat=2)),
    Rule("sgd"),
    _SGD,
    Rule("sgd", momentum=True, nesterov=True),
)
_ALL = ((False, True, True), (True, True, True))  # with and without a turned shadow
_FORMS = (
    *(Form(rule, torch.float32, scalars=scalars) for rule, scalars in product(_RULES, (False, True))),
    *(Form(rule, torch.float32, True, torch.bfloat16, *how) for rule in _RULES for how in _ALL),
    *(Form(_ADAM, torch.float32, True, torch.bfloat16, scalars=scalars) for scalars in (False, True)),
    *(Form(_ADAM, dtype, average) for dtype in (torch.bfloat16, torch.float16) for average in (False, True)),
    *(Form(rule, torch.bfloat16, True, torch.float16, True, True, True) for rule in _RULES),
    Form(_ADAM, torch.float32, True, counts=False),
    Form(_SGD, torch.float32, shadow=torch.float16),
)


def variants(arch: int) -> Iterator[Variant]:
    """Yield the compiled forms that people launch most, and those with everything in them."""
    table = torch.empty(16, COLUMNS.value, dtype=torch.int64, device="meta")
    blocks = torch.empty(64, 2, dtype=torch.int32, device="meta")
    moving = torch.empty(16 + 2 * SLOTS.value, dtype=torch.int64, device="meta")
    counters = torch.empty(2, dtype=torch.int64, device="meta")
    verdict, scalar = torch.empty(2, device="meta"), torch.empty(1, device="meta")
    for form in _FORMS:
        judge, scale = (verdict, scalar) if form.clip else (None, None)
        launch = step_launch(table, blocks, moving, counters, judge, scale, scale, 4, form)
        switches = [name for name in ("average", "turned", "clip", "scalars", "counts") if getattr(form, name)]
        shadow = "" if form.shadow is None else f"shadow={str(form.shadow).removeprefix('torch.')}"
        rule = " ".join([form.rule.name, *(name for name in form.rule._fields[1:] if getattr(form.rule, name))])
        label = " ".join(filter(None, (str(form.param).removeprefix("torch."), rule, shadow, *switches)))
        yield launch.variant("optimizer_step", label, 0)
