"""``fastgan train --ensemble``: folders, summary, resumption, and what a user does wrong."""

from __future__ import annotations

import csv
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

SMALL = [
    *("--device", "cpu", "--batch-size", "16", "--set", "generator.hidden=[12,12]", "--set", "z_dim=2"),
    *("--set", "discriminator.hidden=[12]", "--set", "log_every=4", "--set", "checkpoint_every=4"),
    *("--set", "sample_every=1000", "--set", "samples=50"),
]


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all the rest."""
    from fastgan.train import ensemble_pictures, pictures

    for module, names in ((pictures, ("save_samples", "save_curves")), (ensemble_pictures, ("save_summary",))):
        for name in names:
            monkeypatch.setattr(module, name, lambda *given, **keys: None)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_an_ensemble_and_its_members(fastgan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = fastgan("train", "ring8", "--ensemble", "3", "--steps", "8", "--seed", "5", *SMALL)
    draw_nothing(monkeypatch)
    assert code == 0, err
    assert "ring8: 3 at once, seeds 5, 6, 7" in out and "run: runs/ring8-ensemble" in out
    assert "metric" in out and "loss_d" in out and "modes of 8" in out and "done at step 8" in out
    folder = tmp_path / "runs/ring8-ensemble"
    assert {path.name for path in folder.iterdir()} == {
        "ensemble.json", "summary.csv", "summary.png", *(f"member-0{at}" for at in range(3))
    }  # fmt: skip
    assert {path.name for path in (folder / "member-02").iterdir()} == {
        "config.yaml", "metrics.csv", "final.png", "curves.png", "checkpoints"
    }  # fmt: skip
    table = {row["metric"]: row for row in rows(folder / "summary.csv")}
    last = [float(rows(folder / f"member-0{at}/metrics.csv")[-1]["loss_g"]) for at in range(3)]
    assert [float(table["loss_g"][f"member-0{at}"]) for at in range(3)] == last
    assert float(table["loss_g"]["mean"]) == pytest.approx(sum(last) / 3)
    assert float(table["loss_g"]["min"]) == min(last) and float(table["loss_g"]["max"]) == max(last)

    assert fastgan("sample", "runs/ring8-ensemble/member-01", "--n", "4", "--out", "s.npz")[0] == 0
    code, out, err = fastgan("train", "--resume", "--out", "runs/ring8-ensemble", "--steps", "12")
    assert code == 0 and "resuming runs/ring8-ensemble at step 8" in out and "steps: 8 -> 12" in out
    assert [row["step"] for row in rows(folder / "member-00/metrics.csv")] == ["4", "8", "12"]
    code, out, _ = fastgan("train", "--resume", "--out", "runs/ring8-ensemble/member-02", "--steps", "16")
    assert code == 0 and "resuming runs/ring8-ensemble/member-02 at step 12" in out
    code, out, err = fastgan("train", "ring8", "--ensemble", "3", "--resume")
    assert code == 2 and "member-02 has been trained on alone to step 16" in err

    assert fastgan("train", "ring8", "--ensemble", "2", "--steps", "1", *SMALL)[0] == 0
    assert (tmp_path / "runs/ring8-ensemble-2").is_dir()  # never overwritten
    code, _, err = fastgan("train", "ring8", "--steps", "1", *SMALL)
    assert code == 0 and (tmp_path / "runs/ring8/config.yaml").is_file(), err
    for arguments, said in [
        (("sample", "runs/ring8-ensemble"), "one of its members"),
        (("train", "ring8", "--ensemble", "3", "--out", "runs/ring8-ensemble"), "add --resume"),
        (("train", "ring8", "--ensemble", "3", "--out", "runs"), "not empty"),
        (("train", "ring8", "--ensemble", "4", "--resume", "--out", "runs/ring8-ensemble"), "an ensemble of 3"),
        (("train", "gan-digits", "--ensemble", "3", "--resume", "--out", "runs/ring8-ensemble"), "of ring8, not of"),
        (("train", "--resume", "--out", "runs/ring8-ensemble", "--seed", "1"), "seeds"),
        (("train", "--resume", "--out", "runs/ring8-ensemble", "--vary", "noise=1,2,3"), "what varies"),
        (("train", "--resume", "--out", "runs/ring8-ensemble", "--set", "noise=1"), "--force"),
        (("train", "ring8", "--ensemble", "3", "--resume", "--out", "runs/ring8"), "single run"),
    ]:
        code, _, err = fastgan(*arguments)
        assert code == 2 and said in err and err.count("\n") == 1, (arguments, err)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("ring8", "--ensemble", "0"), "1 or more"),
        (("ring8", "--ensemble", "ten"), "--ensemble takes a number"),
        (("ring8", "--ensemble", "2.5"), "whole number"),
        (("dcgan", "--ensemble", "2"), "family mlp"),
        (("ring8", "--vary", "noise"), "key=value,value"),
        (("ring8", "--vary", "noise="), "key=value,value"),
        (("ring8", "--vary", "noise=[1"), "is not a value"),
        (("ring8", "--vary", "noise=1", "--vary", "noise=2,3"), "--vary noise is given twice"),
        (("ring8", "--vary", "noise=1,x"), "noise takes a number"),
        (("ring8", "--vary", "z_dim=1,2"), "not in z_dim"),
        (("ring8", "--ensemble", "2", "--vary", "noise=1,2,3"), "members 2, vary noise 3"),
        (("ring8", "--ensemble", "2", "--on-nan", "rollback"), "none rolls back"),
        (("ring8", "--ensemble", "2", "--seed", "4294967293"), "seed must be"),
        (("--ensemble", "2"), "say which preset"),
        (("--ensemble", "2", "--resume"), "say which run"),
        (("--ensemble", "2", "--resume", "--out", "none"), "name the preset"),
    ],
)
def test_mistakes_leave_nothing(fastgan: Any, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    code, _, err = fastgan("train", *arguments)
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_values_for_each_member(fastgan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    vary = ("--vary", "generator_optimizer.lr=1e-4,2e-3", "--vary", "generator_optimizer.betas=[0,0.9],[0.5,0.99]")
    code, out, err = fastgan("train", "ring8", *vary, "--steps", "2", "--out", "here", *SMALL)
    assert code == 0 and "2 at once, seed 0;" in out and "generator_optimizer.lr: 0.0001, 0.002" in out, err
    assert "lr: 0.002" in (tmp_path / "here/member-01/config.yaml").read_text()
    code, out, err = fastgan("train", "--resume", "--out", "here", "--steps", "3", *vary)
    assert code == 0 and "resuming here at step 2" in out, err


def test_nobody_left_is_exit_code_3(fastgan: Any, tmp_path: Path) -> None:
    options = ("--ensemble", "2", "--steps", "8", "--set", "discriminator_optimizer.lr=1e38", *SMALL)
    code, _, err = fastgan("train", "ring8", *options)
    assert code == 3 and "no member of the ensemble is left" in err
    assert "member-00 is gone" in err


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_signal_saves(fastgan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    metrics = tmp_path / "runs/ring8-ensemble/member-01/metrics.csv"
    done = threading.Event()

    def interrupt() -> None:
        while not metrics.exists() and not done.wait(0.01):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=interrupt, daemon=True)
    sender.start()
    code, out, err = fastgan("train", "ring8", "--ensemble", "2", "--steps", "1000000", *SMALL)
    done.set()
    sender.join()
    assert code == 143 and "stopped and saved at step" in out and "--resume --out runs/ring8-ensemble" in out, err
    step = int(out.split("saved at step ")[1].split(";")[0])
    code, out, err = fastgan("train", "ring8", "--ensemble", "2", "--resume", "--steps", str(step + 1))
    assert code == 0 and f"resuming runs/ring8-ensemble at step {step}" in out, err
