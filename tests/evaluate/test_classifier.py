"""The classifier of digits: how well it does, what the cache keeps, and what becomes of damage in it."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from fastgan.data.dataset import normalise
from fastgan.data.places import cache_folder
from fastgan.errors import UserError
from fastgan.evaluate import classifier
from fastgan.evaluate.classifier import load_classifier, parts

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def digits():
    return load_classifier("digits")


def test_it_knows_digits_that_it_has_not_seen_and_says_how_well(digits):
    train, test, _ = parts("digits")
    assert len(train) + len(test) == 1797 and len(test) == 360
    measured = float((digits.predict(normalise(test.images)) == test.labels).double().mean())
    assert measured == digits.accuracy > 0.97
    assert f"{measured:.2%} of its 360 images" in str(digits)
    features = digits.features(normalise(test.images[:7]))
    assert features.shape == (7, 128)
    torch.testing.assert_close(digits.network.head(features), digits.logits(normalise(test.images[:7])))


def test_what_is_kept_is_read_again_and_damage_is_trained_anew(digits, monkeypatch, tmp_path):
    shutil.copytree(cache_folder() / "classifiers", tmp_path / "classifiers", ignore=shutil.ignore_patterns("*.lock"))
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    (kept,) = (tmp_path / "classifiers").glob("digits-*")
    built = []
    monkeypatch.setattr(classifier, "trained", lambda *given: built.append(1) or digits)
    again = load_classifier("digits")
    assert not built
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, digits.network.state_dict()[name])
    assert again.accuracy == digits.accuracy
    weights = kept / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    load_classifier("digits")
    assert built == [1] and weights.read_bytes() == whole
    (kept / "classifier.json").write_text(json.dumps({"sha256": 1}))
    load_classifier("digits")
    assert built == [1, 1]
    assert list(kept.parent.glob("digits-*")) == [kept] and not list(kept.parent.glob(".writing*"))


def test_training_again_gives_the_same_weights():
    train, test, tested = parts("digits")
    short = replace(classifier.RECIPES["digits"], epochs=1)
    first, second = (classifier.trained("digits", short, train, test, tested) for _ in range(2))
    for one, other in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_images_of_another_size_are_refused_and_padding_is_looked_past(digits):
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    torch.testing.assert_close(digits.logits(padded), digits.logits(images))
    with pytest.raises(UserError, match="takes grey images of 8x8"):
        digits.predict(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        load_classifier("mnits")


@pytest.mark.full
def test_mnist_is_known_to_98_percent():
    if not os.environ.get("FASTGAN_DATA"):
        pytest.skip("MNIST is looked for in FASTGAN_DATA, which is not set")
    assert load_classifier("mnist").accuracy >= 0.98


def test_loading_leaves_the_callers_random_numbers_alone(digits):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_classifier("digits")
    assert torch.equal(torch.rand(3), expected)


def test_it_is_trained_where_gradients_are_off():
    train, test, tested = parts("digits")
    short = replace(classifier.RECIPES["digits"], epochs=1)
    with torch.no_grad():
        found = classifier.trained("digits", short, train, test, tested)
    assert found.accuracy > 0.5


def test_a_folder_that_was_named_is_the_one_that_is_read(monkeypatch):
    asked = []

    def load(spec, split="train"):
        asked.append((spec, split))
        raise UserError("enough")

    monkeypatch.setattr(classifier.data, "load", load)
    for path, spec in ((None, "mnist"), ("/some/where", "mnist:/some/where")):
        with pytest.raises(UserError, match="enough"):
            load_classifier("mnist", path)
        assert asked.pop() == (spec, "train")
