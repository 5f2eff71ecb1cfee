"""``fastgan train`` where something goes wrong on the way: NaN, and another process in the same folder."""

import csv

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


def test_non_finite_losses_stop_with_3(fastgan, tmp_path):
    settings = [*TINY, "--steps", "100", "--set", "checkpoint_every=100", "--set", "discriminator_optimizer.lr=1e38"]
    code, _, err = fastgan("train", "gan-digits", *settings, "--out", "r")
    assert code == 3
    assert "not finite" in err
    assert [row["step"] for row in rows(tmp_path / "r")] == ["2"]
    assert not (tmp_path / "r/checkpoints").exists()


def test_non_finite_losses_may_be_rolled_back_or_skipped(fastgan, tmp_path):
    """Rates that explode: no rollback helps here, and skipping keeps the weights as they were."""
    settings = [*TINY, "--steps", "40", "--set", "log_every=1", "--set", "discriminator_optimizer.lr=1e38"]
    code, _, err = fastgan("train", "gan-digits", *settings, "--out", "a", "--on-nan", "rollback")
    told = [line for line in err.replace("\r", "\n").splitlines() if "rollback" in line or "rolled back" in line]
    assert code == 3 and len(told) == 6
    assert "rolled back 5 times already" in told[-1] and "learning rates at 0.03125 of" in told[-2]
    code, _, err = fastgan("train", "gan-digits", *settings, "--out", "b", "--on-nan", "skip")
    assert code == 3 and "was skipped in 3 rows" in err
    assert sum(int(row["skipped"]) for row in rows(tmp_path / "b")) > 3
    refused(fastgan("train", "gan-digits", "--on-nan", "wait"), "on_nan", "skip")


def test_a_run_that_another_process_trains_is_left_alone(fastgan, tmp_path, monkeypatch):
    from fastgan import locks
    from fastgan.train import lock

    fastgan("train", "gan-digits", *TINY, "--out", "r")
    (tmp_path / "r" / lock.NAME).write_text("process 12 on elsewhere")
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(locks, "_take", lambda file: False)
        refused(fastgan("train", "--resume", "--out", "r", "--steps", "8"), "process 12 on elsewhere", "another --out")
    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before
    assert fastgan("train", "--resume", "--out", "r", "--steps", "8")[0] == 0  # what a killed one leaves locks nothing


def test_an_ensemble_is_refused_where_several_processes_are_started(fastgan, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(fastgan("train", "ring8", *TINY, "--ensemble", "2", "--out", "e"), "one process", "torchrun")
    refused(fastgan("train", "ring8", *TINY, "--ensemble", "2", "--out", "e", "--resume"), "one process", "torchrun")
    assert not (tmp_path / "e").exists()


def test_a_run_is_resumed_on_the_device_that_it_was_made_for(fastgan, monkeypatch):
    """Whether all processes have a GPU is asked of those that are to train on one."""
    from fastgan.train import joining

    fastgan("train", "gan-digits", *TINY, "--out", "r")
    asked, join = [], joining.join
    monkeypatch.setattr(joining, "join", lambda device: asked.append(device) or join("cpu"))
    assert fastgan("train", "--resume", "--out", "r", "--steps", "7")[0] == 0
    assert fastgan("train", "gan-digits", "--resume", "--out", "r", "--steps", "8")[0] == 0
    assert asked == ["cpu", "cpu"]
