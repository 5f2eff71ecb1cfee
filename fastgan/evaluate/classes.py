"""Whether samples show the class that the generator was told: what a classifier of the data makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError, require
from fastgan.evaluate.classifier import RECIPES, load_classifier
from fastgan.evaluate.metric import Result, Subject

CHEAP = True
EACH = 100  # samples of each class
REFERENCE = "Odena et al., 2017 (AC-GAN), section 4.1, by a classifier of its own"


def confusion(told: Tensor, seen: Tensor, classes: int) -> Tensor:
    """How often each class was told, by row, and seen, by column: ``(n,)`` integers twice -> ``(classes, classes)``."""
    return torch.bincount(told * classes + seen, minlength=classes**2).view(classes, classes)


def suits(dataset: Dataset) -> str | None:
    """Why no classifier judges samples of ``dataset``; None where one does."""
    if dataset.name in RECIPES:
        return None
    return f"there is a classifier of {', '.join(RECIPES)}, and none of {dataset.name}"


def measure(subject: Subject, n: int | None = None) -> Result:
    """Judge ``n`` samples, as many of each class, 100 of each unless told."""
    if not subject.classes or subject.make is None or subject.latents is None:
        raise UserError("the generator is told no class, so that none can be missed; cgan's and acgan's are")
    judge = load_classifier(subject.data.name, subject.data.path)
    if subject.classes > len(judge.classes):
        raise UserError(f"the generator is told {subject.classes} classes, and {judge.name} has {len(judge.classes)}")
    n = n or EACH * subject.classes
    told = torch.arange(n) % subject.classes
    seen = judge.predict(subject.make(subject.latents(n, subject.seed), told))
    counts = confusion(told, seen, len(judge.classes))[: subject.classes]
    right = counts.diagonal().double() / counts.sum(1).clamp_min(1)
    given = counts.sum(1) > 0
    return Result(
        "classes",
        {
            "right %": 100 * float((told == seen).double().mean()),
            "right %, worst class": 100 * float(right[given].min()),
            "right %, test images": 100 * judge.accuracy,
        },
        f"{n} samples ({subject.weights}), {n // subject.classes} or more of each class, named by {judge}; it says"
        " nothing of how varied or how real they are",
        {"classes.png": lambda path: picture(counts, judge.classes).savefig(path, format="png")},
        REFERENCE,
        reading=_reading(counts, right, given, judge.classes),
    )


def picture(counts: Tensor, names: tuple[str, ...]) -> Any:
    """Draw shares of each told class by the class that was seen, in percent; return the matplotlib figure."""
    figures = require("matplotlib.figure", why="drawing the classes")
    figure = figures.Figure(figsize=(0.45 * len(names) + 1.4, 0.45 * len(counts) + 1.2), dpi=110, layout="constrained")
    axis = figure.subplots()
    shares = 100 * counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    for row, line in enumerate(shares.tolist()):
        for column, share in enumerate(line):
            if share >= 0.5:
                colour = "white" if share > 50 else "black"
                axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    turned = 45 if max(map(len, names)) > 2 else 0
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=turned)
    axis.set_yticks(range(len(counts)), names[: len(counts)], fontsize=7)
    axis.set(xlabel="class that the classifier sees, % of the row", ylabel="class that was told")
    return figure


def _reading(counts: Tensor, right: Tensor, given: Tensor, names: tuple[str, ...]) -> str:
    worst = int(torch.where(given, right, torch.inf).argmin())
    others = counts[worst].clone()
    others[worst] = 0
    if not int(others.sum()):
        return "every sample shows its class"
    as_what = names[int(others.argmax())]
    return f"class {names[worst]} is shown least, by {right[worst]:.0%} of its samples; it is taken most for {as_what}"
