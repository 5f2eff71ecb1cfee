"""What every metric is given: samples that were drawn already are checked before anything is measured by them."""

import pytest
import torch

from fastgan import data
from fastgan.errors import UserError
from fastgan.evaluate import Subject

DIGITS = data.load("digits")
IMAGES = data.normalise(DIGITS.images)


@pytest.mark.parametrize(
    "samples, message",
    [
        (DIGITS.images, "samples are floats, images in .-1, 1., not uint8"),
        (IMAGES.flatten(1), r"have shape \(n, 1, 8, 8\), not \(1797, 64\)"),
        (IMAGES * 255, "these reach 255: scale them"),
        (IMAGES.masked_fill(torch.arange(1797)[:, None, None, None] == 5, torch.nan), "not finite"),
    ],
)
def test_samples_of_another_kind_are_refused(samples, message):
    with pytest.raises(UserError, match=message):
        Subject.of_samples(samples, DIGITS)


def test_as_many_as_there_are():
    subject = Subject.of_samples(IMAGES[:10] * (1 + 1e-5), DIGITS)
    assert torch.equal(subject.sample(10), IMAGES[:10] * (1 + 1e-5))
    for n in (11, 0, -5):
        with pytest.raises(UserError, match=f"{n} samples are wanted and there are 10"):
            subject.sample(n)
