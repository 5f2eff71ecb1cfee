"""``fastgan evaluate``: numbers with their protocol, as text and as JSON; what does not apply is said."""

import json
import struct

import pytest
import torch

pytest.importorskip("tyro")


def train(preset, folder, *more):
    from fastgan.cli import main

    tiny = ["--steps", "2", "--set", "generator.hidden=[8]", "--device", "cpu", "--out", str(folder), *more]
    assert main(["train", preset, *tiny]) == 0
    return folder


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    return train("ring8", tmp_path_factory.mktemp("runs") / "ring")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return train("gan-digits", tmp_path_factory.mktemp("runs") / "digits")


def test_the_metrics_are_listed(fastgan):
    from fastgan.evaluate import METRICS, metric

    for arguments in ((), ("--list",)):
        code, said, _ = fastgan("evaluate", *arguments)
        assert code == 0 and all(name in said for name in METRICS)
    for name in METRICS:
        assert callable(metric(name).measure) and isinstance(metric(name).CHEAP, bool)


def test_a_number_stands_beside_its_protocol(fastgan, ring):
    code, said, _ = fastgan("evaluate", ring, "--metric", "modes", "--n", 300)
    assert code == 0
    assert "modes covered" in said and "300 samples (raw weights)" in said and "PacGAN" in said
    assert (ring / "evaluation" / "modes.png").is_file() and "modes.png" in said


def test_json_is_the_same_numbers_again(fastgan, ring, tmp_path):
    from fastgan import data
    from fastgan.evaluate.modes import coverage
    from fastgan.train.generate import load_generator

    documents = []
    for seed in (3, 3, 4):
        code, said, _ = fastgan(
            "evaluate", ring, "--metric", "modes", "--seed", seed, "--json", "--out", tmp_path / "o"
        )
        assert code == 0
        documents.append(json.loads(said))
    first, again, other = (document["results"][0]["values"] for document in documents)
    assert first == again != other
    points = load_generator(ring, "cpu").sample(2500, 3)
    found = coverage(points, data.load("ring8").modes)
    assert first["modes covered"] == found.covered and first["high quality %"] == 100 * found.high_quality
    about = documents[0]
    assert (about["step"], about["weights"], about["data"], about["seed"]) == (2, "raw", "ring8", 3)
    assert {"fastgan", "torch", "commit"} <= set(about) and (tmp_path / "o/modes.png").is_file()


def test_random_choices_follow_from_the_seed(fastgan, digits):
    from fastgan import data
    from fastgan.evaluate import Subject, metric
    from fastgan.train.generate import load_generator

    arguments = ["--metric", "swd", "--n", 40, "--seed", 3, "--device", "cpu", "--json"]
    code, said, _ = fastgan("evaluate", digits, *arguments)
    assert code == 0
    samples, found = load_generator(digits, "cpu").sample(40, 3), data.load("digits")
    fixed, expected = (metric("swd").measure(Subject.of_samples(samples, found, seed=seed), 40) for seed in (0, 3))
    assert json.loads(said)["results"][0]["values"] == expected.values != fixed.values


def test_what_is_held_out_is_the_test_split(fastgan, tmp_path):
    import numpy as np

    for stem, count in (("train", 80), ("t10k", 7)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.zeros(count, dtype=np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{stem}-{kind}-ubyte").write_bytes(head + array.tobytes())
    run = train("gan-digits", tmp_path / "run", "--data", f"mnist:{tmp_path}")
    code, said, _ = fastgan("evaluate", run, "--metric", "parzen", "--n", 20)
    assert code == 0 and "mean over the test split (7)" in " ".join(said.split())


def test_without_a_metric_what_suits_runs_and_the_rest_is_named(fastgan, ring):
    code, said, _ = fastgan("evaluate", ring, "--n", 200, "--json")
    found = json.loads(said)
    assert code == 0
    assert "modes" in [result["metric"] for result in found["results"]]
    assert "holds points" in found["not_measured"]["fid"]


def test_options_reach_their_metric(fastgan, digits):
    arguments = ["--metric", "precision-recall", "--metric", "swd", "--n", 60, "--features", "random-projection"]
    code, said, _ = fastgan("evaluate", digits, *arguments)
    said = " ".join(said.split())  # whose lines are wrapped
    assert code == 0 and "64 features of random-projection" in said and "swd x1000" in said
    code, said, _ = fastgan("evaluate", digits, "--metric", "parzen", "--n", 40, "--oracle")
    assert code == 0 and "train[:40] of digits in place of samples" in " ".join(said.split())


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--metric", "mode"], "did you mean 'modes'"),
        (["--metric", "modes"], "no mixture"),
        (["--metric", "swd", "--oracle"], "option of parzen"),
        (["--metric", "swd", "--n", "1"], "--n"),
        (["--metric", "swd", "--n", "100000"], "smaller --n"),
        (["--metric", "precision-recall", "--features", "no.such:f", "--n", "20"], "no.such"),
        (["--metric", "precision-recall", "--features", "os:getcwd", "--n", "20"], "failed on images (20, 1, 8, 8)"),
        (["--metric", "precision-recall", "--features=", "--n", "20"], "extractor"),
        (["--features="], "extractor"),
        (["--oracle"], "add --metric parzen"),
        (["--out", __file__], "is a file"),
        (["--data", "ring8"], "ring8"),
        (["--which", "emma"], "did you mean 'ema'"),
    ],
)
def test_mistakes(fastgan, digits, arguments, word):
    before = sorted(path.name for path in digits.iterdir())
    code, said, wrong = fastgan("evaluate", digits, *arguments)
    assert (code, said) == (2, "") and word in wrong and len(wrong.splitlines()) == 1
    assert sorted(path.name for path in digits.iterdir()) == before


def test_samples_that_are_not_finite_are_told(fastgan, digits, monkeypatch):
    from fastgan.train.generate import Generator

    monkeypatch.setattr(Generator, "make", lambda self, z, labels=None: torch.full((len(z), 1, 8, 8), torch.nan))
    code, _, wrong = fastgan("evaluate", digits, "--metric", "interpolation")
    assert code == 2 and "not finite" in wrong


def test_images_that_are_not_square_are_taken_as_they_lie(fastgan, tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (80, 3, 12, 8), dtype=np.uint8))
    run = train("gan-digits", tmp_path / "run", "--data", f"npy:{tmp_path / 'x.npy'}")
    code, said, _ = fastgan("evaluate", run, "--metric", "swd", "--metric", "diversity", "--n", 20)
    assert code == 0 and "swd x1000, side 8" in said


def test_an_exported_generator_needs_the_name_of_its_data(fastgan, ring, tmp_path):
    assert fastgan("export", ring, "--out", tmp_path / "g.safetensors")[0] == 0
    code, _, wrong = fastgan("evaluate", tmp_path / "g.safetensors")
    assert code == 2 and "--data" in wrong
    arguments = ["--metric", "modes", "--data", "ring8", "--n", 50]
    assert fastgan("evaluate", tmp_path / "g.safetensors", *arguments)[0] == 0


def test_the_discriminator_of_a_run_is_that_of_its_checkpoint(ring, tmp_path):
    from fastgan.train import run
    from fastgan.train.generate import load_discriminator

    stored = run.opened(ring)[1].tensors["discriminator"]
    module = load_discriminator(ring, "cpu")
    assert not module.training
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, stored[name])
    assert load_discriminator(tmp_path / "g.safetensors") is None


def test_splits_are_those_that_load():
    from fastgan import data
    from fastgan.errors import UserError

    for spec in ("digits", "ring8", "grid25"):
        assert data.splits(spec)[0] == "train"
        if "test" in data.splits(spec):
            data.load(spec, split="test")
        else:
            with pytest.raises(UserError, match="no test split"):
                data.load(spec, split="test")
    assert data.splits("mnist:FOLDER") == ("train", "test") and data.splits("npz:x.npz") == ("train",)
