"""Adversarial examples beside generated ones: how little moves an image across a boundary, and how it looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate.attacks import Found, Logits, fgsm, nearest_fooling, random_signs, two_classes
from fastgan.evaluate.classifier import RECIPES, Classifier, load_classifier
from fastgan.evaluate.metric import Draw, Result, Subject, chosen, needs_images
from fastgan.evaluate.sheet import Row, amplified, sheet

CHEAP = False  # hundreds of passes forward and backward
SAMPLES = 48  # images that are attacked
EPS = (0.02, 0.05, 0.1, 0.2, 0.5)  # of the box [-1, 1]
SHOWN_EPS = 0.5
SHOWN = 8
REFERENCE = "Szegedy et al., 2014, section 4.1 (box-constrained L-BFGS); Goodfellow et al., 2015, section 4 (FGSM)"


@dataclass(frozen=True)
class Trial:
    """What became of images under attack.

    Attributes:
        images: ``(n, C, H, W)`` in [-1, 1], all named as they are before.
        found: what box-constrained L-BFGS made of them.
        stepped: what FGSM with `SHOWN_EPS` made of them.
        values: the numbers, by name.
    """

    images: Tensor
    found: Found
    stepped: Tensor
    values: dict[str, float]


def attacked(logits: Logits, images: Tensor, labels: Tensor, targets: Tensor, random: torch.Generator) -> Trial:
    """Attack images ``(n, C, H, W)`` that are ``labels`` and shall be taken for ``targets``, both ``(n,)``.

    Distances are of values in [-1, 1]; the distortion is sqrt(sum of squares / number of values) of values in [0, 1],
    as Szegedy et al. have it. Those of L-BFGS are means of what fooled.
    """

    def wrong(moved: Tensor) -> float:
        with torch.no_grad():
            return 100 * float((logits(moved).argmax(1) != labels).double().mean())

    values = {f"FGSM {eps:g}: fooled %": wrong(fgsm(logits, images, labels, eps)) for eps in EPS}
    values |= {f"random signs {eps:g}: fooled %": wrong(random_signs(images, eps, random)) for eps in EPS[-2:]}
    found = nearest_fooling(logits, images, targets)
    step = (found.images - images).flatten(1)[found.fooled].double()
    some = len(step) > 0
    length = step.norm(dim=1)
    values["L-BFGS: fooled %"] = 100 * float(found.fooled.double().mean())
    values["L-BFGS: mean L2"] = float(length.mean()) if some else math.nan
    values["L-BFGS: mean Linf"] = float(step.abs().amax(1).mean()) if some else math.nan
    values["L-BFGS: distortion"] = float((length / 2 / math.sqrt(step.shape[1])).mean()) if some else math.nan
    return Trial(images, found, fgsm(logits, images, labels, SHOWN_EPS), values)


def suits(dataset: Dataset) -> str | None:
    """Why it cannot be measured against ``dataset``; None where it can."""
    return needs_images(dataset)


def measure(subject: Subject, n: int | None = None) -> Result:
    """Attack with ``n`` images, 48 by default, a classifier of the data, where the package trains one, and the
    discriminator: the former with real images, the latter with generated ones."""
    n = n or SAMPLES
    values: dict[str, float] = {}
    pictures: dict[str, Draw] = {}
    said: list[str] = []
    if subject.data.name in RECIPES:
        _of_classifier(subject, n, values, pictures, said)
    if subject.discriminator is not None and not subject.classes:
        _of_discriminator(subject, n, values, pictures, said)
    if not values:
        if said:
            raise UserError(f"nothing to attack: {'; '.join(said)}")
        raise UserError(
            f"nothing to attack: {subject.data.name} has no classifier here ({', '.join(RECIPES)} have), and the run"
            " has no discriminator that takes images alone"
        )
    said.append("L-BFGS: L-BFGS-B in the box [-1, 1], its weight by bisection, then drawn back along the line")
    return Result("adversarial", values, "; ".join(said), pictures, REFERENCE)


def _of_classifier(
    subject: Subject, n: int, values: dict[str, float], pictures: dict[str, Draw], said: list[str]
) -> None:
    """Real images, of the test split where there is one, each towards the next class."""
    judge = load_classifier(subject.data.name, subject.data.path)
    source = subject.held_out() or subject.data
    assert source.labels is not None
    pick = torch.randperm(len(source), generator=subject.random())[: 2 * n]
    images, labels = source.batch(pick).cpu(), source.labels.cpu()[pick]
    right = (judge.predict(images) == labels).nonzero().flatten()[:n]
    images, labels = images[right], labels[right]
    targets = (labels + 1) % len(judge.classes)
    trial = attacked(judge.logits, images, labels, targets, subject.random())
    values |= {f"classifier: {name}": value for name, value in trial.values.items()}
    pictures["adversarial-classifier.png"] = _picture(
        trial,
        [judge.classes[label] for label in labels.tolist()],
        _named(judge, trial.found.images),
        _named(judge, trial.stepped),
    )
    said.append(f"{len(images)} real images that {judge} names right; L-BFGS towards the next class")


def _of_discriminator(
    subject: Subject, n: int, values: dict[str, float], pictures: dict[str, Draw], said: list[str]
) -> None:
    """Generated images that the discriminator calls fake, towards real."""
    network = subject.discriminator
    assert network is not None
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    frozen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)

    def score(images: Tensor) -> Tensor:
        scores: Tensor = network(images.to(device)).flatten().cpu()
        return scores

    with torch.no_grad():
        samples = subject.sample(4 * n).float()
        of_samples = score(samples)
        of_real = score(chosen(subject.data, min(4 * n, len(subject.data)), subject.random()))
    boundary = float(of_real.mean() + of_samples.mean()) / 2
    images = samples[(of_samples < boundary).nonzero().flatten()[:n]]
    try:
        if not len(images):
            said.append("the discriminator calls no sample fake: it was not attacked")
            return
        logits = two_classes(score, boundary)
        fake = torch.zeros(len(images), dtype=torch.int64)
        trial = attacked(logits, images, fake, 1 - fake, subject.random())
        values |= {f"discriminator: {name}": value for name, value in trial.values.items()}
        with torch.no_grad():
            words = [
                [f"{value:+.2f}" for value in (score(shown) - boundary)[:SHOWN].tolist()]
                for shown in (images, trial.found.images, trial.stepped)
            ]
        pictures["adversarial-discriminator.png"] = _picture(trial, *words)
        said.append(
            f"{len(images)} generated images ({subject.origin}) that the discriminator scores below {boundary:.3g},"
            " the middle of its mean scores of real and generated ones: fooled is scored above"
        )
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _named(judge: Classifier, images: Tensor) -> list[str]:
    chances = judge.probabilities(images[:SHOWN])
    return [f"{judge.classes[int(chance.argmax())]} ({float(chance.max()):.0%})" for chance in chances]


def _picture(trial: Trial, before: Sequence[str], after: Sequence[str], stepped: Sequence[str]) -> Draw:
    """Originals, what was added, and what came of it."""
    found, larger = amplified(trial.found.images[:SHOWN] - trial.images[:SHOWN])
    signs, larger_signs = amplified(trial.stepped[:SHOWN] - trial.images[:SHOWN])
    rows = [
        Row("original", trial.images[:SHOWN], before[:SHOWN]),
        Row(f"L-BFGS adds, x{larger}", found),
        Row("result", trial.found.images[:SHOWN], after),
        Row(f"FGSM {SHOWN_EPS:g} adds, x{larger_signs}", signs),
        Row("result", trial.stepped[:SHOWN], stepped),
    ]
    return lambda path: sheet(rows).savefig(path, format="png")
