"""A conditional run from the command line: trained, sampled by class, exported, and read again."""

import numpy as np
import pytest
import torch

import fastgan
from fastgan.cli import main
from fastgan.errors import UserError
from fastgan.train.generate import load_generator

TINY = ["--steps", "2", "--set", "z_dim=4", "--set", "samples=20", "--set", "batch_size=8", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of cgan on digits, two steps long."""
    folder = tmp_path_factory.mktemp("runs") / "cgan"
    sizes = ["--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]"]
    assert main(["train", "cgan", *sizes, *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def exported(run, tmp_path):
    pytest.importorskip("safetensors")
    assert main(["export", str(run), "--out", str(tmp_path / "g.safetensors")]) == 0
    return tmp_path / "g.safetensors"


def sampled(source, *arguments, out):
    assert main(["sample", str(source), *arguments, "--seed", "3", "--out", str(out)]) == 0
    return dict(np.load(out))


def test_samples_of_a_class_are_what_the_network_makes_of_it(run, exported, tmp_path):
    generator = load_generator(run, "cpu")
    assert generator.classes == 10
    for number, source in enumerate((run, exported)):
        one = sampled(source, "--class", "7", "--n", "5", out=tmp_path / f"one{number}.npz")
        assert one["labels"].tolist() == [7] * 5
        z = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
        made = generator.make(z, torch.full((5,), 7))
        wanted = ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        assert np.abs(one["images"].astype(int) - wanted.astype(int)).max() <= 1
        rows = sampled(source, "--class", "rows", "--row", "3", out=tmp_path / f"rows{number}.npz")
        assert rows["labels"].tolist() == [label for label in range(10) for _ in range(3)]
    assert not np.array_equal(
        sampled(run, "--class", "6", "--n", "5", out=tmp_path / "six.npz")["images"], one["images"]
    )


def test_a_class_that_is_not_there(run, capsys):
    assert main(["sample", str(run), "--class", "10"]) == 2
    assert "--class must be between 0 and 9" in capsys.readouterr().err


def test_a_program_takes_labels_too(run, tmp_path, capsys):
    assert main(["export", str(run), "--format", "torch", "--out", str(tmp_path / "g.pt2")]) == 0
    assert "labels (batch,) below 10" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "g.pt2").module()
    z, labels = torch.randn(3, 4), torch.tensor([1, 9, 4])
    torch.testing.assert_close(program(z, labels), load_generator(run, "cpu").make(z, labels))


def test_the_preset_resumes(run):
    assert main(["train", "--resume", "--out", str(run), "--steps", "3"]) == 0
    assert load_generator(run, "cpu").step == 3


def test_data_without_labels(tmp_path, capsys):
    np.save(tmp_path / "points.npy", np.zeros((64, 2), np.float32))
    arguments = ["train", "cgan", "--data", f"npy:{tmp_path / 'points.npy'}", *TINY, "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "CGANGenerator tells classes apart, and the data have no labels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_header_whose_classes_are_no_number(exported):
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(exported, "pt") as file:
        header = json.loads(file.metadata()["fastgan-generator"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it is no mapping
    assert header["classes"] == 10
    for wrong in ("10", -1, 2**40, True):
        save_file(tensors, exported, {"fastgan-generator": json.dumps({**header, "classes": wrong})})
        with pytest.raises(UserError, match="not whole"):
            fastgan.load(exported)


def test_a_method_that_tells_no_classes(tmp_path, capsys):
    arguments = ["train", "vae", "--set", "generator.name=cgan", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "method=vae tells no classes, which CGANGenerator asks for" in capsys.readouterr().err
