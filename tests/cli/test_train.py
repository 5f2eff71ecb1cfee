"""``fastgan train`` as a user runs it: folders, defaults, resuming; mistakes cost one line and exit code 2."""

import csv
import errno
import os
import re

import pytest
import yaml
from PIL import Image

TINY = [
    *("--steps", "6", "--batch-size", "16", "--device", "cpu"),
    *("--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]", "--set", "z_dim=4"),
    *("--set", "log_every=2", "--set", "checkpoint_every=3", "--set", "samples=4"),
]


def refused(result, *words):
    code, _, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2
    assert len(lines) == 1, err
    for word in words:
        assert word in lines[0]


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything(fastgan, tmp_path):
    code, out, err = fastgan("train", "gan-digits", *TINY, "--seed", "11", "--set", "sample_every=3")
    assert code == 0
    assert "runs/gan-digits/final.png" in out
    assert "it/s" in err
    assert float(re.findall(r"img/s=([\d.]+)", err)[-1]) > 0
    run = tmp_path / "runs" / "gan-digits"
    assert [row["step"] for row in rows(run)] == ["2", "4", "6"]
    assert rows(run)[0]["images"] == "32"
    assert rows(run)[0]["penalty"] == ""
    for name in ("final.png", "curves.png", "samples/step-00000003.png", "samples/step-00000006.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 100
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000003", "step-00000006"]
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored["preset"], stored["steps"], stored["generator"]["hidden"]) == ("gan-digits", 6, [8])
    assert (stored["seed"], stored["batch_size"], stored["device"]) == (11, 16, "cpu")


def test_runs_are_never_overwritten(fastgan, tmp_path):
    for _ in range(3):
        assert fastgan("train", "gan-digits", *TINY)[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["gan-digits", "gan-digits-2", "gan-digits-3"]
    before = (tmp_path / "runs/gan-digits/metrics.csv").read_bytes()
    refused(fastgan("train", "gan-digits", *TINY, "--out", "runs/gan-digits"), "--resume")
    assert (tmp_path / "runs/gan-digits/metrics.csv").read_bytes() == before


def test_resume_goes_on_as_if_never_stopped(fastgan, tmp_path):
    assert fastgan("train", "gan-digits", *TINY, "--steps", "12", "--out", "whole")[0] == 0
    assert fastgan("train", "gan-digits", *TINY, "--out", "parts")[0] == 0
    code, out, _ = fastgan("train", "--resume", "--out", "parts", "--steps", "12")
    assert code == 0
    assert "resuming parts at step 6" in out
    assert "steps: 6 -> 12" in out
    assert yaml.safe_load((tmp_path / "parts/config.yaml").read_text())["steps"] == 12
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    for row in (*whole, *parts):
        del row["seconds"]
    assert whole == parts
    weights = "checkpoints/step-00000012/generator.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "parts" / weights).read_bytes()


def test_resume_takes_the_newest_run_of_the_preset(fastgan):
    for _ in range(2):
        fastgan("train", "gan-digits", *TINY)
    assert "resuming runs/gan-digits-2 at step 6" in fastgan("train", "gan-digits", "--resume", "--steps", "8")[1]


@pytest.mark.parametrize("verb", ["train", "sample", "export", "theory"])
def test_help_shows_no_default_that_is_none(fastgan, capsys, verb):
    with pytest.raises(SystemExit):
        fastgan(verb, "--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--out TEXT" in said and "None" not in said


def test_resume_alone_asks_which_run(fastgan):
    refused(fastgan("train", "--resume"), "--out RUN")


def test_resume_without_a_run_starts_at_zero_and_says_so(fastgan):
    code, out, _ = fastgan("train", "gan-digits", *TINY, "--resume")
    assert code == 0
    assert "starting at step 0" in out


def test_resume_without_a_checkpoint_starts_at_zero(fastgan, tmp_path):
    import shutil

    fastgan("train", "gan-digits", *TINY, "--out", "r")
    shutil.rmtree(tmp_path / "r/checkpoints")
    code, out, _ = fastgan("train", "--resume", "--out", "r")
    assert code == 0
    assert "no checkpoint yet: starting at step 0" in out
    assert [row["step"] for row in rows(tmp_path / "r")] == ["2", "4", "6"]


def test_resume_with_other_hyperparameters_needs_force(fastgan):
    fastgan("train", "gan-digits", *TINY, "--out", "r")
    change = ("train", "gan-digits", "--resume", "--out", "r", "--steps", "8", "--set", "generator_optimizer.lr=1e-3")
    refused(fastgan(*change), "generator_optimizer.lr", "0.0002 -> 0.001", "--force")
    code, out, _ = fastgan(*change, "--force")
    assert code == 0
    assert "changed: generator_optimizer.lr: 0.0002 -> 0.001" in out


def test_resume_refuses_the_run_of_another_preset(fastgan, tmp_path):
    fastgan("train", "gan-digits", *TINY, "--out", "r")
    (tmp_path / "other.yaml").write_text("preset: ring8\n")
    before = (tmp_path / "r/config.yaml").read_bytes()
    for target in ("ring8", "other.yaml"):
        refused(fastgan("train", target, "--resume", "--out", "r"), "gan-digits", "ring8")
    assert (tmp_path / "r/config.yaml").read_bytes() == before


def test_resume_with_another_batch_size_goes_on_counting_images(fastgan, tmp_path):
    fastgan("train", "gan-digits", *TINY, "--out", "r")
    assert fastgan("train", "--resume", "--out", "r", "--steps", "8", "--batch-size", "32", "--force")[0] == 0
    assert [row["images"] for row in rows(tmp_path / "r")] == ["32", "64", "96", "160"]


def test_a_start_that_was_killed_is_no_run(fastgan, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/.config.yaml.1234").write_text("pre")
    code, out, _ = fastgan("train", "gan-digits", *TINY, "--out", "r", "--resume")
    assert code == 0
    assert "starting at step 0" in out


def test_a_folder_with_other_things_is_left_alone(fastgan, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/notes.txt").write_text("mine")
    refused(fastgan("train", "gan-digits", *TINY, "--out", "r"), "not empty", "another --out")
    refused(fastgan("train", "gan-digits", *TINY, "--out", "r", "--resume"), "not empty", "another --out")
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["notes.txt"]


def test_of_two_that_start_at_once_one_gets_the_folder(tmp_path):
    from fastgan.errors import UserError
    from fastgan.presets import preset
    from fastgan.train import run

    run._publish(tmp_path, preset("ring8"))
    with pytest.raises(UserError, match="holds a run already"):
        run._publish(tmp_path, preset("gan-digits"))
    assert run.stored(tmp_path) == preset("ring8")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_home_and_numbers_as_people_write_them(fastgan, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert fastgan("train", "gan-digits", *TINY, "--steps", "2e0", "--out", "~/deep/r")[0] == 0
    assert [row["step"] for row in rows(tmp_path / "home/deep/r")] == ["2"]


def test_no_steps_leave_an_untrained_run(fastgan, tmp_path):
    code, out, _ = fastgan("train", "gan-digits", *TINY, "--steps", "0", "--out", "r")
    assert code == 0
    assert "done at step 0: r/final.png\n" in out
    assert fastgan("sample", "r", "--n", "2")[0] == 0
    assert fastgan("train", "--resume", "--out", "r", "--steps", "2")[0] == 0
    assert [row["step"] for row in rows(tmp_path / "r")] == ["2"]


def test_points_of_five_numbers(fastgan, tmp_path):
    import numpy as np

    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(40, 5)).astype("float32"))
    assert fastgan("train", "gan-digits", *TINY, "--data", "npy:points.npy", "--out", "r")[0] == 0
    assert fastgan("sample", "r", "--out", "a.npz")[0] == 0
    assert np.load(tmp_path / "a.npz")["points"].shape == (64, 5)
    refused(fastgan("sample", "r", "--out", "a.png"), "(5,)")


def test_a_key_from_a_newer_version(fastgan, tmp_path):
    fastgan("train", "gan-digits", *TINY, "--steps", "0", "--out", "r")
    with (tmp_path / "r/config.yaml").open("a") as file:
        file.write("moon_phase: 3\n")
    for command in (("sample", "r"), ("train", "--resume", "--out", "r")):
        refused(fastgan(*command), "r/config.yaml", "moon_phase")


def test_data_that_vanished(fastgan, tmp_path):
    import numpy as np

    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(40, 2)).astype("float32"))
    fastgan("train", "gan-digits", *TINY, "--data", "npy:points.npy", "--out", "r")
    (tmp_path / "points.npy").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    refused(fastgan("train", "--resume", "--out", "r", "--steps", "8"), str(tmp_path / "points.npy"))
    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before


def test_full_disk_is_one_line(fastgan, tmp_path, monkeypatch):
    from fastgan.train import checkpoint

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write", full)
    code, _, err = fastgan("train", "gan-digits", *TINY, "--out", "r")
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("fastgan: r/checkpoints cannot be written (No space left on device): make room")
    assert list((tmp_path / "r/checkpoints").iterdir()) == []


def test_out_of_memory_is_one_line(fastgan, monkeypatch):
    import torch

    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):

        def greedy(*_, error=error, **__):
            raise error

        monkeypatch.setattr("fastgan.train.trainer.Trainer.fit", greedy)
        code, _, err = fastgan("train", "gan-digits", *TINY)
        assert (code, err.count("\n")) == (2, 1)
        assert "smaller batch_size" in err


def test_a_reader_that_left_ends_no_training(fastgan, tmp_path, monkeypatch):
    import sys

    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, os.fdopen(writer, "w") as broken:
        patch.setattr(sys, "stdout", broken)
        from fastgan.cli import main

        assert main(["train", "gan-digits", *TINY, "--out", "r"]) == 0
        assert main(["doctor"]) == 0
    assert [row["step"] for row in rows(tmp_path / "r")] == ["2", "4", "6"]


def test_damaged_checkpoint(fastgan, tmp_path):
    fastgan("train", "gan-digits", *TINY, "--out", "r")
    file = tmp_path / "r/checkpoints/step-00000006/generator.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    before = sorted(path.name for path in (tmp_path / "r").rglob("*"))
    refused(fastgan("train", "--resume", "--out", "r", "--steps", "8"), "is damaged", "step-00000006")
    refused(fastgan("sample", "r"), "is damaged")
    assert sorted(path.name for path in (tmp_path / "r").rglob("*")) == before


def test_config_file(fastgan, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "preset: gan-digits\nsteps: 2\ngenerator: {hidden: [8]}\nlog_every: 1\nbatch_size: 8\n"
    )
    assert fastgan("train", "mine.yaml", "--out", "r")[0] == 0
    assert len(rows(tmp_path / "r")) == 2
    assert fastgan("train", "r/config.yaml", "--out", "again", "--steps", "1")[0] == 0


def test_ring_draws_points(fastgan, tmp_path):
    assert fastgan("train", "ring8", *TINY)[0] == 0
    with Image.open(tmp_path / "runs/ring8/final.png") as picture:
        assert min(picture.size) > 400


def test_without_a_target_the_presets_are_listed(fastgan):
    code, out, _ = fastgan("train")
    assert code == 0
    for name in ("gan-digits", "mlp (alias gan-mnist)", "dcgan", "ring8"):
        assert name in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "gan-digit"], ["did you mean 'gan-digits'"]),
        (["tain"], ["did you mean 'train'"]),
        (["train", "--steps", "3"], ["gan-digits"]),
        (["train", "gan-digits", "--bacth-size", "3"], ["--bacth-size", "--batch-size"]),
        (["train", "gan-digits", "--steps", "many"], ["steps", "many"]),
        (["train", "gan-digits", "--steps", "-1"], ["at least 0"]),
        (["train", "gan-digits", "--seed", "-1"], ["seed must be between"]),
        (["train", "gan-digits", "--batch-size", "1"], ["batch", "more than 1 value per channel"]),
        (["train", "gan-digits", "--out", ""], ["--out is empty"]),
        (["train", "gan-digits", "--set", "=3"], ["key=value"]),
        (["train", "gan-digits", "--set", "preset=mlp"], ["gan-digits"]),
        (["train", "gan-digits", "--set", "generator.hidden=[-5]"], ["at least 1"]),
        (["train", "gan-digits", "--set", "generator.hidden=[1000000000000]"], ["cannot be built"]),
        (["train", "gan-digits", "--set", "generator_optimizer.lr=-1"], ["lr"]),
        (["train", "dcgan", "--data", "digits", "--set", "image_size=8", "--set", "generator.width=0"], ["width"]),
        (["train", "gan-digits", "--set", "log_evry=3"], ["did you mean 'log_every'"]),
        (["train", "gan-digits", "--set", "log_every"], ["key=value"]),
        (["train", "gan-digits", "--set", "generator.hiden=[3]"], ["did you mean 'hidden'"]),
        (["train", "gan-digits", "--set", "generator.hidden=3"], ["takes a list"]),
        (["train", "gan-digits", "--set", "generator.activation=relo"], ["did you mean 'relu'"]),
        (["train", "gan-digits", "--set", "objective=minmax"], ["did you mean 'minimax'"]),
        (["train", "gan-digits", "--device", "cuda:99"], ["--device"]),
        (["train", "gan-digits", "--device", "gpu"], ["device", "cuda"]),
        (["train", "gan-digits", "--batch-size", "100000"], ["larger than the data set"]),
        (["train", "gan-digits", "--data", "npz:absent.npz"], ["absent.npz"]),
        (["train", "gan-digits", "--data", "mnist:absent"], ["absent"]),
        (["train", "gan-digits", "--data", "digit"], ["did you mean 'digits'"]),
        (["train", "dcgan", "--data", "digits"], ["8", "32"]),
        (["train", "absent.yaml"], ["absent.yaml"]),
        (["sample", "absent"], ["no run at absent"]),
        (["sample"], ["RUN"]),
        (["train", "--resume", "--out", "absent"], ["absent"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(fastgan, tmp_path, arguments, words):
    refused(fastgan(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_cuda_without_a_gpu(fastgan, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(fastgan("train", "gan-digits", "--device", "cuda"), "--device cuda", "--device cpu")
    assert list(tmp_path.iterdir()) == []


def test_overview_and_version(fastgan):
    assert "doctor" in fastgan()[1]
    assert fastgan("--version")[1].startswith("fastgan 0.")
