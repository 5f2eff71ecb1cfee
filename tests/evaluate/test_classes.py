"""Whether samples show their class: real digits as an obedient generator, one deaf to its labels, one class swapped."""

import pytest
import torch

from fastgan import data
from fastgan.data import normalise
from fastgan.errors import UserError
from fastgan.evaluate import Subject, metric
from fastgan.evaluate.classes import confusion, measure, suits


def generator(swap=None, deaf=False):
    """A subject that answers a label with a real digit of that class."""
    digits = data.load("digits")
    images = normalise(digits.images)

    def make(z, labels):
        random = torch.Generator().manual_seed(0)
        shown = torch.where(labels == swap[0], swap[1], labels) if swap else labels
        if deaf:
            shown = torch.randint(10, labels.shape, generator=random)
        of = [torch.nonzero(digits.labels == kind).flatten() for kind in range(10)]
        chosen = [of[kind][int(abs(row[0]) * 1e4) % len(of[kind])] for row, kind in zip(z, shown, strict=True)]
        return images[torch.stack(chosen)]

    def latents(n, seed):
        return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))

    return Subject(lambda n: images[:n], digits, make=make, latents=latents, classes=10)


def test_confusion_counts_pairs():
    counts = confusion(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_real_digits_are_right_as_often_as_the_judge():
    found = measure(generator()).values
    assert found["right %"] > 97 and found["right %, worst class"] > 90
    assert found["right %"] == pytest.approx(found["right %, test images"], abs=2.5)


def test_a_deaf_generator_is_right_by_chance():
    found = measure(generator(deaf=True)).values
    assert found["right %"] == pytest.approx(10, abs=3)


def test_one_class_shown_as_another_is_named(tmp_path):
    result = measure(generator(swap=(3, 8)), 600)
    assert result.values["right %, worst class"] == 0
    assert result.values["right %"] == pytest.approx(90, abs=2)
    assert "class 3 is shown least, by 0% of its samples; it is taken most for 8" in result.reading
    result.pictures["classes.png"](tmp_path / "classes.png")
    assert (tmp_path / "classes.png").stat().st_size > 5000


def test_fewer_samples_than_classes():
    result = measure(generator(), 4)
    assert result.values["right %"] >= 75


def test_what_is_told_no_class_cannot_miss_one():
    digits = data.load("digits")
    with pytest.raises(UserError, match="told no class"):
        measure(Subject.of_samples(normalise(digits.images[:10]), digits), 10)
    assert suits(digits) is None
    assert "none of ring8" in metric("classes").suits(data.load("ring8"))
