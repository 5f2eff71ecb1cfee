"""Class labels in a step: which networks are told them, and the cross-entropy of a discriminator that guesses them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.data import Dataset
from fastgan.errors import UserError

Verdict = tuple[Tensor, Tensor | None]  # logits; and the logits of classes, of a discriminator that classifies


def number_of(network: nn.Module) -> int:
    """How many classes a network tells apart, by its attribute ``num_classes``; 0: it knows none."""
    return int(getattr(network, "num_classes", None) or 0)


def check(network: nn.Module, data: Dataset, pac: int = 1) -> None:
    """Raise UserError where a network tells classes apart, and the data have no labels or more classes than it.

    Nor has a pack of ``pac`` samples one label.
    """
    known, name = number_of(network), type(network).__name__
    if (known or getattr(network, "classifies", False)) and data.labels is None:
        raise UserError(
            f"{name} tells classes apart, and the data set {data.name!r} has no labels: take data that have some"
            " (digits, mnist, ring8, Dataset.from_tensor(samples, labels))"
        )
    if (known or getattr(network, "classifies", False)) and pac > 1:
        raise UserError(f"{name} tells classes apart, and a pack of {pac} samples has no one class: set pac=1")
    if known and len(data.classes) > known:
        raise UserError(
            f"{name} tells {known} classes apart, and the data set {data.name!r} has {len(data.classes)}: set its"
            f" num_classes to {len(data.classes)}"
        )


def chosen_labels(
    wanted: int | Sequence[int] | Tensor | None, n: int, classes: int, random: torch.Generator
) -> Tensor | None:
    """Labels ``(n,)`` on the generator's device: one class for all, one for each sample, or at random where None.

    None for a network of no ``classes``. Raises UserError for labels that do not fit.
    """
    if not classes:
        if wanted is not None:
            raise UserError("this generator takes no labels: leave labels out, or train a conditional one (cgan)")
        return None
    if wanted is None:
        return torch.randint(classes, (n,), generator=random, device=random.device)
    labels = torch.as_tensor(wanted)
    if labels.is_floating_point() or labels.is_complex() or labels.shape not in ((), (n,)):
        raise UserError(f"labels are one integer, or one for each of the {n} samples, not {tuple(labels.shape)}")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"labels lie between 0 and {classes - 1}, not {int(labels.min())} ... {int(labels.max())}")
    return labels.to(random.device, torch.int64).expand(n)


class Classes:
    """The labels of a step, and where they go. Samples that are generated have those of the last real batch.

    So they follow the data's own distribution at no cost. ``weight`` is that of the cross-entropy of a discriminator
    whose ``classifies`` is set, which guesses the labels instead of being told them.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, weight: float = 1.0) -> None:
        self.classifies = bool(getattr(discriminator, "classifies", False))
        self._generator = number_of(generator) > 0
        self._discriminator = number_of(discriminator) > 0 and not self.classifies
        self.weight = weight
        self.labels: Tensor | None = None  # of the last real batch

    @property
    def told(self) -> bool:
        """Whether a step asks for labels at all."""
        return self._generator or self._discriminator or self.classifies

    def to_generator(self) -> tuple[Tensor, ...]:
        """What the generator takes behind its latents."""
        return (self._known(),) if self._generator else ()

    def to_discriminator(self, samples: int) -> tuple[Tensor, ...]:
        """What the discriminator takes behind so many samples: one or several batches one behind the other."""
        return (self._repeated(samples),) if self._discriminator else ()

    def verdict(self, output: Tensor | tuple[Tensor, Tensor]) -> Verdict:
        """What the discriminator has returned, as logits and class logits. Raises UserError for another kind of it."""
        if self.classifies != isinstance(output, tuple):
            wanted = "(logits, class_logits), for it classifies" if self.classifies else "logits"
            raise UserError(f"the discriminator returned {type(output).__name__}: let it return {wanted}")
        return output if isinstance(output, tuple) else (output, None)

    def cross_entropy(self, kinds: Tensor | None) -> Tensor | None:
        """Weighted cross-entropy of one or several batches' class logits ``(batches * n, classes)``, summed over them.

        Odena, Olah and Shlens 2017, "Conditional Image Synthesis with Auxiliary Classifier GANs", eq. 3: of real and of
        fake samples for D; G's is that of the fake ones. None where there are none.
        """
        if kinds is None:
            return None
        batches = len(kinds) // len(self._known())
        return F.cross_entropy(kinds.float(), self._repeated(len(kinds))) * (self.weight * batches)

    def _known(self) -> Tensor:
        assert self.labels is not None, "a real batch is drawn before anything is made or judged"
        return self.labels

    def _repeated(self, samples: int) -> Tensor:
        labels = self._known()
        return labels if samples == len(labels) else labels.repeat(samples // len(labels))
