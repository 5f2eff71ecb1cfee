"""``fastgan sample``: pictures, folders and arrays; rows and classes; the seed decides."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("tyro")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from fastgan.cli import main

    folder = tmp_path_factory.mktemp("runs") / "r"
    tiny = [
        "--steps",
        "2",
        "--set",
        "generator.hidden=[8]",
        "--set",
        "z_dim=4",
        "--device",
        "cpu",
        "--out",
        str(folder),
    ]
    assert main(["train", "gan-digits", *tiny]) == 0
    return folder


class ByClass(nn.Module):
    """Images whose first pixel tells the label, and the others the latent."""

    def __init__(self, z_dim, sample_shape, num_classes: int):
        super().__init__()
        self.num_classes, self.sample_shape = num_classes, sample_shape
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, z, labels):
        rest = torch.tanh(z[:, :3] * self.scale)
        return torch.cat([labels[:, None] / 10, rest], 1).unflatten(1, self.sample_shape)


@pytest.fixture
def conditional(tmp_path, monkeypatch):
    """A generator of three classes, exported."""
    from fastgan import models
    from fastgan.presets import from_dict
    from fastgan.train.export import write
    from fastgan.train.generate import Generator

    monkeypatch.setitem(sys.modules, "by_class", types.SimpleNamespace(G=ByClass))
    monkeypatch.setitem(models.NETWORKS, "by_class", ("by_class", "G", "G"))
    config = from_dict({"z_dim": 4, "generator": {"name": "by_class"}})
    module = ByClass(4, (1, 2, 2), 3).eval()
    file = tmp_path / "by_class.safetensors"
    write(Generator(module, config, 5, torch.device("cpu"), (1, 2, 2), "raw"), file, "safetensors")
    return file


def sample(*arguments):
    from fastgan.cli import main

    return main(["sample", *map(str, arguments)])


def arrays(*arguments, out):
    assert sample(*arguments, "--out", out) == 0
    return np.load(out)


def test_grid(run, tmp_path):
    assert sample(run, "--n", 9, "--out", tmp_path / "grid.png") == 0
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (3 * 68 + 4, 3 * 68 + 4)


def test_folder_and_array_hold_the_same_images(run, tmp_path):
    assert sample(run, "--n", 12, "--seed", 5, "--out", tmp_path / "images") == 0
    assert sample(run, "--n", 12, "--seed", 5, "--out", tmp_path / "a.npz") == 0
    assert sample(run, "--n", 12, "--seed", 6, "--out", tmp_path / "b.npz") == 0
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert (names[0], names[-1], len(names)) == ("00.png", "11.png", 12)
    first, second = np.load(tmp_path / "a.npz")["images"], np.load(tmp_path / "b.npz")["images"]
    assert first.shape == (12, 8, 8, 1)
    assert first.dtype == np.uint8
    for index, name in enumerate(names):
        with Image.open(tmp_path / "images" / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), first[index, :, :, 0])
    assert not np.array_equal(first, second)


def test_a_folder_may_have_a_dot_but_nothing_in_it(run, tmp_path, capsys):
    assert sample(run, "--n", 2, "--out", f"{tmp_path / 'images.v2'}/") == 0
    (tmp_path / "empty.d").mkdir()
    assert sample(run, "--n", 2, "--out", tmp_path / "empty.d") == 0
    before = (tmp_path / "empty.d/0.png").read_bytes()
    assert sample(run, "--n", 2, "--out", tmp_path / "empty.d") == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "empty.d/0.png").read_bytes() == before


def test_the_loaded_generator_is_ready_to_use(run):
    from fastgan.train.generate import load_generator

    generator = load_generator(run, "cpu")
    assert not generator.module.training
    assert generator.step == 2
    torch.testing.assert_close(generator.sample(5, seed=1, batch=2), generator.sample(5, seed=1))


def test_array_is_a_data_set_again(run, tmp_path):
    from fastgan import data

    assert sample(run, "--n", 7, "--out", tmp_path / "a.npz") == 0
    assert len(data.load(f"npz:{tmp_path / 'a.npz'}")) == 7


def test_without_a_seed_one_is_drawn_and_printed(run, capsys):
    seeds = set()
    for _ in range(2):
        assert sample(run, "--n", 4) == 0
        said = capsys.readouterr().out
        seeds.add(said.rsplit("seed ", 1)[1].strip())
        assert "raw weights" in said  # the run keeps no average
    assert len(seeds) == 2
    assert all((run / f"sample-{seed}.png").exists() for seed in seeds)


def test_of_a_checkpoint_goes_into_the_run(run):
    step = run / "checkpoints" / "step-00000002"
    former = sorted(path.name for path in step.iterdir())
    assert sample(step, "--n", 4, "--seed", 9) == 0
    assert (run / "sample-9.png").is_file() and sorted(path.name for path in step.iterdir()) == former


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--n", "0"], "--n"),
        (["--n", "many"], "--n"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "9" * 30], "--seed"),
        (["--out", "x.jpg"], ".npz"),
        (["--out", ""], "--out is empty"),
        (["--device", "cuda:99"], "--device"),
        (["--class", "3"], "knows no classes"),
        (["--class", "rows"], "knows no classes"),
        (["--which", "emma"], "did you mean 'ema'"),
        (["--truncation", "0"], "--truncation"),
        (["--truncation", "nan"], "--truncation"),
        (["--interpolate", "--row", "1"], "--row"),
        (["--interpolate", "--n", "12"], "multiple of 8"),
    ],
)
def test_mistakes(run, capsys, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert sample(run, *arguments) == 2
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_interpolation_rows(run, tmp_path):
    assert sample(run, "--interpolate", "--row", 5, "--seed", 3) == 0
    with Image.open(run / "interpolation-3.png") as picture:
        assert picture.size == (5 * 68 + 4, 8 * 68 + 4)
    rows = arrays(run, "--interpolate", "--n", 15, "--row", 5, "--seed", 3, out=tmp_path / "a.npz")["images"]
    plain = arrays(run, "--n", 6, "--seed", 3, out=tmp_path / "b.npz")["images"]
    rows = rows.reshape(3, 5, 8, 8)
    np.testing.assert_allclose(rows[:, [0, -1]].reshape(6, 8, 8), plain[..., 0], atol=1)
    steps = np.abs(np.diff(rows.astype(float), axis=1)).max((2, 3))
    assert (steps.max(1) < np.abs(rows[:, 0].astype(float) - rows[:, -1]).max((1, 2))).all()


def test_a_grid_with_rows_of_its_own(run, tmp_path):
    assert sample(run, "--n", 6, "--row", 3, "--out", tmp_path / "grid.png") == 0
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (3 * 68 + 4, 2 * 68 + 4)
    assert sample(run, "--n", 2, "--row", 10**9, "--out", tmp_path / "grid.png") == 0


def test_truncation_is_less_variety_from_the_same_seed(run, tmp_path):
    made = [
        arrays(run, "--n", 50, "--seed", 3, *more, out=tmp_path / f"{index}.npz")["images"].astype(float)
        for index, more in enumerate([[], ["--truncation", "1e9"], ["--truncation", "0.1"]])
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert made[2].std(0).mean() < 0.3 * made[0].std(0).mean()


def test_classes(conditional, tmp_path, capsys):
    one = arrays(conditional, "--class", 2, "--n", 5, "--seed", 1, out=tmp_path / "a.npz")
    assert one["labels"].tolist() == [2] * 5
    assert len(np.unique(one["images"][:, 0, 0])) == 1
    rows = arrays(conditional, "--class", "rows", "--row", 4, out=tmp_path / "b.npz")
    assert rows["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    images = rows["images"].reshape(3, 4, 4)
    assert (images[:, :, 1:] == images[:1, :, 1:]).all()  # the same latents in each row
    assert (np.diff(images[:, 0, 0].astype(int)) > 0).all()
    assert len(np.unique(images[0, :, 1:], axis=0)) == 4
    anyhow = arrays(conditional, "--n", 60, out=tmp_path / "c.npz")
    assert set(anyhow["labels"]) == {0, 1, 2}
    walk = arrays(conditional, "--n", 6, "--row", 3, "--interpolate", "--seed", 4, out=tmp_path / "d.npz")
    assert (walk["labels"].reshape(2, 3) == walk["labels"].reshape(2, 3)[:, :1]).all()
    for text in ("3", "-1", "cat", "1.5"):
        assert sample(conditional, "--class", text) == 2
        assert "--class" in capsys.readouterr().err


def test_classes_are_a_data_set_with_labels_again(conditional, tmp_path):
    from fastgan import data

    arrays(conditional, "--n", 7, "--class", 1, out=tmp_path / "a.npz")
    assert data.load(f"npz:{tmp_path / 'a.npz'}").labels.tolist() == [1] * 7


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert sample(tmp_path) == 2
    assert "not a run" in capsys.readouterr().err
