"""What ``fastgan evaluate`` compares with: the data that a limit left, classes as often as they have them; its disk."""

import json

import numpy as np
import pytest

from fastgan import data

pytest.importorskip("tyro")

TINY = ["--steps", "2", "--set", "generator.hidden=[8]", "--device", "cpu"]


def test_what_a_limit_left_out_is_not_compared_with(fastgan, tmp_path):
    run = tmp_path / "run"
    assert fastgan("train", "gan-digits", "--set", "limit=300", *TINY, "--out", run)[0] == 0
    wanted = [word for name in ("swd", "diversity", "parzen") for word in ("--metric", name)]
    code, said, _ = fastgan("evaluate", run, *wanted, "--n", 50, "--json")
    swd, diversity, parzen = json.loads(said)["results"]
    assert code == 0 and "against 50 training images" in swd["protocol"]
    assert "distances of pixels to 300 training images" in diversity["protocol"]
    assert "by train[300:1048]; mean over train[1048:1797] (not trained on)" in parzen["protocol"]
    code, _, wrong = fastgan("evaluate", run, "--metric", "swd", "--n", 301)
    assert code == 2 and "has 300 samples" in wrong
    code, said, _ = fastgan("evaluate", run, "--metric", "swd", "--n", 400, "--data", "digits", "--json")
    assert code == 0  # data that somebody names are taken whole


def test_classes_are_as_frequent_as_in_training(fastgan, tmp_path, monkeypatch):
    from fastgan.train.generate import Generator

    digits = data.load("digits")
    kept = np.concatenate([np.flatnonzero(digits.labels == kind)[: 90 if kind == 0 else 10] for kind in range(10)])
    np.savez(tmp_path / "rare.npz", images=digits.images[kept, 0].numpy(), labels=digits.labels[kept].numpy())
    run = tmp_path / "run"
    assert fastgan("train", "cgan", "--data", f"npz:{tmp_path / 'rare.npz'}", *TINY, "--out", run)[0] == 0
    told, make = [], Generator.make

    def watched(self, z, labels=None, **how):
        told.append(labels)
        return make(self, z, labels, **how)

    monkeypatch.setattr(Generator, "make", watched)
    arguments = ["evaluate", run, "--metric", "swd", "--n", 180, "--json"]
    documents = [json.loads(fastgan(*arguments, "--seed", seed)[1]) for seed in (3, 3, 4)]
    assert "classes as often as in the data" in documents[0]["results"][0]["protocol"]
    assert float((told[0] == 0).double().mean()) == pytest.approx(0.5, abs=0.12)  # 90 of 180
    assert told[0].tolist() == told[1].tolist() != told[2].tolist()
    assert documents[0]["results"] == documents[1]["results"] != documents[2]["results"]
    assert fastgan("evaluate", run, "--metric", "interpolation", "--n", 20)[0] == 0


def test_numbers_are_printed_though_their_picture_cannot_be(fastgan, tmp_path, monkeypatch):
    from pathlib import Path

    run = tmp_path / "run"
    assert fastgan("train", "ring8", *TINY, "--out", run)[0] == 0
    mkdir = Path.mkdir

    def refused(self, *how, **more):
        if self.name == "evaluation":
            raise OSError(28, "No space left on device")
        mkdir(self, *how, **more)

    monkeypatch.setattr(Path, "mkdir", refused)
    code, said, wrong = fastgan("evaluate", run, "--metric", "modes", "--n", 60)
    assert code == 2 and "modes covered" in said and "modes.png" not in said
    assert "modes.png cannot be written" in wrong and "then measure again" in wrong and wrong.count("\n") == 1
    code, said, _ = fastgan("evaluate", run, "--metric", "modes", "--n", 60, "--json")
    assert code == 2 and json.loads(said)["results"][0]["pictures"] == []


def test_a_table_has_its_own_metric_and_cgan_its_own(fastgan, tmp_path):
    run = tmp_path / "run"
    small = ["--set", "generator.hidden=[16]", "--set", "discriminator.hidden=[16]", "--steps", 2, "--device", "cpu"]
    assert fastgan("train", "ctgan", *small, "--out", run)[0] == 0
    code, said, _ = fastgan("evaluate", run, "--n", 100)
    assert code == 0 and "columns, mean distance" in said and "100 rows (raw weights) beside" in said
    assert (run / "evaluation" / "table.png").stat().st_size > 10_000
    assert fastgan("train", "cgan", *TINY, "--out", tmp_path / "cgan")[0] == 0
    code, said, _ = fastgan("evaluate", tmp_path / "cgan", "--metric", "classes", "--n", 50)
    assert code == 0 and "right %" in said and "50 samples (raw weights), 5 or more of each class" in said
    code, _, wrong = fastgan("evaluate", run, "--metric", "classes")
    assert code == 2 and "none of people" in wrong
