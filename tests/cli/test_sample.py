"""``fastgan sample``: pictures, folders and arrays; the seed decides."""

import numpy as np
import pytest
import torch
from PIL import Image

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


def sample(*arguments):
    from fastgan.cli import main

    return main(["sample", *map(str, arguments)])


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
    assert len(seeds) == 2
    assert all((run / f"sample-{seed}.png").exists() for seed in seeds)


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
    ],
)
def test_mistakes(run, capsys, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert sample(run, *arguments) == 2
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert sample(tmp_path) == 2
    assert "not a run" in capsys.readouterr().err
