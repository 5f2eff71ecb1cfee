"""gan_loss: what either player of a GAN minimises, with its mean, its slopes and what one watches, as one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.errors import UserError, unknown
from fastgan.ops import dropout, peers
from fastgan.ops import gan_loss_formulas as formulas
from fastgan.ops.backend import KERNEL_DTYPES, by_reference, only_ours, register
from fastgan.ops.gan_loss_autograd import apply, keep
from fastgan.ops.gan_loss_formulas import RECIPES, Form
from fastgan.ops.registration import traced, transformed

OP = register("gan_loss")
SIDES = ("discriminator", "generator")
MOST_AVERAGED = 2**18  # logits of a batch that the one program of relativistic_average is good for

_forms: dict[object, Form] = {}


def gan_loss(
    name: str,
    real_logits: Tensor | None = None,
    fake_logits: Tensor | None = None,
    *,
    side: str = "discriminator",
    label_smoothing: float | tuple[float, float] = 0.0,
    label_flip: float = 0.0,
    real_weight: Tensor | None = None,
    fake_weight: Tensor | None = None,
    rng: Tensor | None = None,
    monitors: Tensor | None = None,
) -> Tensor:
    """Return one player's loss, to be minimised: one launch with every logit's slope, and one to scale them backward.

    With x the real logits, y the fake ones, s+ = softplus and E the mean over a batch:

    | name                 | discriminator                               | generator                               |
    |----------------------|---------------------------------------------|-----------------------------------------|
    | minimax              | E s+(-x) + E s+(y)                          | -E s+(y)                                |
    | non_saturating       | E s+(-x) + E s+(y)                          | E s+(-y)                                |
    | least_squares        | E (x - 1)^2 / 2 + E y^2 / 2                 | E (y - 1)^2 / 2                         |
    | hinge                | E max(0, 1 - x) + E max(0, 1 + y)           | -E y                                    |
    | wasserstein          | -E x + E y                                  | -E y                                    |
    | relativistic         | E s+(-(x_i - y_i))                          | E s+(-(y_i - x_i))                      |
    | relativistic_average | E s+(-(x - E y)) + E s+(y - E x)            | E s+(-(y - E x)) + E s+(x - E y)        |

    Sources: ``fastgan/ops/gan_loss_formulas.py`` names paper and equation beside each formula.

    Args:
        name: of the objective.
        real_logits: D's output for real samples, any shape and strides; bf16, fp16 or fp32, or any other dtype by plain
            PyTorch. The generator's side reads it in relativistic losses only, where both are needed on either side.
            Logits that lie at one distance from each other are read as they are, others copied first.
        fake_logits: D's output for generated samples. The batches may differ in size, but not in ``relativistic``:
            there logit i is judged against logit i, in the order of their elements.
        side: ``discriminator`` or ``generator``.
        label_smoothing: how much less than 1 the real label is, or a pair: that, and how much more than 0 the fake one
            is. For minimax, non_saturating and least_squares, the discriminator's side.
        label_flip: the probability that a label is the other one. Drawn on the device: each replay of a CUDA graph
            draws anew. As ``label_smoothing``, and for hinge.
        real_weight, fake_weight: a weight for each sample, of a shape that expands to the logits'. As in torch.nn, the
            weighted terms are summed and divided by their count. Of ``relativistic``: ``real_weight``, one for a pair.
        rng: seed and offset of the flips, int64 (2) on the device; None draws them from PyTorch's generator.
        monitors: fp32 (4), contiguous, that the same launch writes for the batches that this side reads: the mean
            score of real and of fake samples, then the share of each that D tells rightly, by true labels and
            unweighted. A score is D(x) = sigmoid(x) for minimax and non_saturating, sigmoid(x_i - y_i) and
            sigmoid(x - E y) for relativistic ones, and x itself for the others. Rightly: a real sample above the bound
            (1/2 for least_squares, else 0, of what the sigmoid is taken of) and a fake one not above; in
            ``relativistic`` both where x_i > y_i.

    Returns:
        The loss, () fp32, under autocast too; fp64 for fp64 logits. Finite for logits up to 1e4 and far beyond; NaN in
        gives NaN out; NaN where a batch is empty.

    Gradient order: any, with respect to the logits; from the second on, and with respect to weights, by plain PyTorch.
    A batch that requires no gradient has none formed. What is saved for it: the logits, and their slopes. Functional
    transforms (``torch.func``) go by plain PyTorch.

    Raises:
        UserError: for an unknown name or side, a batch that is missing, an option that the objective has no use for,
            and operands that do not go together.
    """
    form = _form(name, side, label_smoothing, label_flip)
    real, fake = _batches(name, form, side, real_logits, fake_logits)
    if real is None:
        real_weight = None
    elif form.relation == "pairs" and fake_weight is not None:
        raise UserError(f"{name}: a pair has one weight; give real_weight alone")
    operand = fake if real is None else real
    assert operand is not None
    real_weight, fake_weight = _expanded(real_weight, real, "real"), _expanded(fake_weight, fake, "fake")
    if form.flip:
        drawn = None if rng is not None else torch.randint(2**63 - 1, (2,), device=operand.device)
        rng = drawn if rng is None else dropout.usable(rng, operand.device)
    else:
        rng = None
    operands = real, fake, real_weight, fake_weight, rng
    _check_monitors(monitors, operand)
    if by_reference(OP, operand) or transformed() or not _fits(form, *operands):
        if monitors is not None:
            keep(formulas.watch(form, real, fake), monitors)
        return formulas.loss(form, *operands)
    return apply(form, operands, monitors, not traced(real, fake, real_weight, fake_weight, monitors))


def check_options(name: str, label_smoothing: float | tuple[float, float], label_flip: float) -> None:
    """Raise a ``UserError`` for an unknown objective, and for options of the discriminator's that it has no use for."""
    _form(name, SIDES[0], label_smoothing, label_flip)


def _form(name: str, side: str, smoothing: float | Sequence[float], flip: float) -> Form:
    """Return what is to be computed, or say which option makes no sense."""
    labels = tuple(smoothing) if isinstance(smoothing, (tuple, list)) else (smoothing, 0.0)
    if len(labels) != 2:
        raise UserError(f"label_smoothing {smoothing}: give one number, or one for each of the two labels")
    if torch.compiler.is_compiling():  # which would watch the dictionary grow
        return _new_form(name, side, labels, flip)
    key = (name, side, labels, flip)
    if key not in _forms:
        _forms[key] = _new_form(*key)
    return _forms[key]


def _new_form(name: str, side: str, smoothing: tuple[float, float], flip: float) -> Form:
    if name not in RECIPES:
        raise unknown("objective", name, RECIPES)
    if side not in SIDES:
        raise unknown("side", side, SIDES)
    recipe = RECIPES[name]
    for option, given, able in (("label_smoothing", any(smoothing), ("both",)), ("label_flip", flip, ("flip", "both"))):
        if given and side == "generator":
            raise UserError(f"{option} is the discriminator's: leave it out on the generator's side")
        if given and recipe.labels not in able:
            others = ", ".join(other for other, its in RECIPES.items() if its.labels in able)
            raise UserError(f"{name} has no labels for {option}: leave it out, or take one of {others}")
    if not all(0 <= part <= 1 for part in (*smoothing, flip)):
        raise UserError(f"label_smoothing {smoothing} and label_flip {flip} have to be between 0 and 1")
    if side == "discriminator":
        labels = (1.0 - smoothing[0], float(smoothing[1]))
        return Form(recipe.term, recipe.relation, "real", labels, 1.0, float(flip))
    term, label = recipe.generator_term or recipe.term, recipe.generator_label
    return Form(term, recipe.relation, "fake", (1.0 - label, label), recipe.generator_sign)


def _batches(
    name: str, form: Form, side: str, real: Tensor | None, fake: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the batches that are read."""
    if fake is None:
        raise UserError(f"{name}: the {side}'s loss needs fake_logits")
    if side == "generator" and form.relation == "none":
        return None, fake
    if real is None:
        raise UserError(f"{name}: the {side}'s loss needs real_logits")
    if real.device != fake.device:
        raise UserError(f"real_logits are on {real.device} and fake_logits on {fake.device}: move one of them")
    if form.relation == "pairs" and real.numel() != fake.numel():
        sizes = f"{real.numel()} real and {fake.numel()} fake"
        raise UserError(
            f"{name} judges pairs and got {sizes} logits: take batches of one size, or relativistic_average"
        )
    return real, fake


def _expanded(weight: Tensor | None, logits: Tensor | None, which: str) -> Tensor | None:
    """Return a weight in the shape of its logits."""
    if weight is None or logits is None:
        return None
    try:
        return weight.expand(logits.shape)
    except RuntimeError:
        shapes = f"{tuple(weight.shape)} does not expand to the logits' {tuple(logits.shape)}"
        raise UserError(f"{which}_weight of shape {shapes}: reshape it to one value for each sample") from None


def _check_monitors(monitors: Tensor | None, operand: Tensor) -> None:
    if monitors is None:
        return
    fits = monitors.dtype == torch.float32 and monitors.shape == (4,) and monitors.is_contiguous()
    if not fits or monitors.device != operand.device or monitors.requires_grad:
        given = f"{str(monitors.dtype).removeprefix('torch.')} {tuple(monitors.shape)} on {monitors.device}"
        raise UserError(f"monitors have to be a contiguous float32 (4) buffer on {operand.device}, not {given}")


def _fits(form: Form, real: Tensor | None, fake: Tensor | None, *weights: Tensor | None) -> bool:
    """Whether the kernels take these operands; PyTorch computes what they do not."""
    *scales, _ = weights
    if any(
        t is not None and (t.dtype not in KERNEL_DTYPES or t.layout != torch.strided) for t in (real, fake, *scales)
    ):
        return False
    if any(t is not None and (t.requires_grad or t.device != fake.device) for t in scales):  # type: ignore[union-attr]
        return False
    if form.relation == "average" and peers.current() is not None:  # the means are those of all parts of the batch
        return False
    small = form.relation != "average" or max(t.numel() for t in (real, fake) if t is not None) <= MOST_AVERAGED
    return small or only_ours()
