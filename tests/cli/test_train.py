"""``fastgan train`` as a user runs it: folders, defaults, resuming; mistakes cost one line and exit code 2."""

import csv

import pytest
import yaml
from PIL import Image

TINY = [
    *("--steps", "6", "--batch-size", "16", "--device", "cpu"),
    *("--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]", "--set", "z_dim=4"),
    *("--set", "log_every=2", "--set", "sample_every=3", "--set", "checkpoint_every=3", "--set", "samples=4"),
]


@pytest.fixture
def fastgan(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder; returns (exit code, stdout, stderr)."""
    pytest.importorskip("tyro")
    from fastgan.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


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
    code, out, _ = fastgan("train", "gan-digits", *TINY)
    assert code == 0
    assert "runs/gan-digits/final.png" in out
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


def test_resume_refuses_the_run_of_another_preset(fastgan):
    fastgan("train", "gan-digits", *TINY, "--out", "r")
    refused(fastgan("train", "ring8", "--resume", "--out", "r"), "gan-digits", "ring8")


def test_damaged_checkpoint(fastgan, tmp_path):
    fastgan("train", "gan-digits", *TINY, "--out", "r")
    file = tmp_path / "r/checkpoints/step-00000006/generator.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    before = sorted(path.name for path in (tmp_path / "r").rglob("*"))
    refused(fastgan("train", "--resume", "--out", "r", "--steps", "8"), "checksum", "step-00000006")
    refused(fastgan("sample", "r"), "checksum")
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
        (["train", "gan-digits", "--steps", "many"], ["--steps", "many"]),
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


def test_non_finite_losses_stop_with_3(fastgan, tmp_path):
    code, _, err = fastgan("train", "gan-digits", *TINY, "--set", "discriminator_optimizer.lr=1e38", "--out", "r")
    assert code == 3
    assert "not finite" in err
    assert len(rows(tmp_path / "r")) >= 1


def test_overview_and_version(fastgan):
    assert "doctor" in fastgan()[1]
    assert fastgan("--version")[1].startswith("fastgan 0.")
