"""What a run keeps: one process at a time, the best checkpoint, TensorBoard's files, rows without seams."""

import json
import multiprocessing
import os
import signal
import sys
import types

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn import Chain, LinearAct
from fastgan.train import checkpoint, pictures
from fastgan.train.best import Best
from fastgan.train.capture import strict
from fastgan.train.lock import NAME, held
from fastgan.train.metrics import COLUMNS, FIRST, SECOND, MetricsFile

POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """They take a second each."""
    monkeypatch.setattr(pictures, "save_curves", lambda *_: None)
    monkeypatch.setattr(
        pictures, "save_samples", lambda made, path, **_: pictures.image(torch.zeros(3, 4, 4)).save(path)
    )


def trainer(**keys):
    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    critic = Chain(LinearAct(2, 16), LinearAct(16, 1, activation="none"))
    keys = {"z_dim": 3, "batch_size": 20, "log_every": 4, "device": "cpu", **keys}
    return fastgan.Trainer(generator=generator, discriminator=critic, data=POINTS, **keys)


def resumed(folder, **keys):
    run = trainer(out=folder, **keys)
    run.resume(checkpoint.load(checkpoint.whole(folder / "checkpoints")[-1]))
    return run


def rows(run):
    return [[row.get(name) for name in COLUMNS if name != "seconds"] for row in run.history]


def _hold(folder, there, go):
    with held(folder):
        there.set()
        go.wait(30)


@pytest.mark.parametrize("ends", ["well", "killed"])
def test_a_folder_is_one_process_s_until_it_ends(tmp_path, ends):
    run = trainer(out=tmp_path).fit(4, progress=False)
    before = (tmp_path / "metrics.csv").read_bytes()
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    there, go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, there, go))
    other.start()
    assert there.wait(30)
    with pytest.raises(UserError, match=rf"is being trained by process {other.pid} on ") as caught:
        run.fit(8, progress=False)
    assert "\n" not in str(caught.value) and run.step == 4
    assert (tmp_path / "metrics.csv").read_bytes() == before
    if ends == "killed":
        other.kill()
    else:
        go.set()
    other.join()
    assert (tmp_path / NAME).exists() == (ends == "killed")
    run.fit(8, progress=False)
    assert not (tmp_path / NAME).exists()


def test_a_process_may_hold_a_folder_twice(tmp_path):
    with held(tmp_path):
        with held(tmp_path / "."):
            pass
        assert (tmp_path / NAME).read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / NAME).exists()


def test_lengthening_a_run_leaves_no_seam(tmp_path):
    whole = trainer(out=tmp_path / "a").fit(12, progress=False)
    trainer(out=tmp_path / "b").fit(6, progress=False)
    rest = resumed(tmp_path / "b")
    assert [row["step"] for row in rest.history] == [4, 6]
    rest.fit(6, progress=False)
    assert [row["step"] for row in rest.history] == [4, 6]  # nothing to do is no reason to lose a row
    rest.fit(7, progress=False)
    assert [row["step"] for row in rest.history] == [4, 7]
    rest.fit(12, progress=False)
    again = resumed(tmp_path / "b")
    assert rows(whole) == rows(rest) == rows(again)
    assert MetricsFile(tmp_path / "b/metrics.csv").read(100) == rest.history


def test_rows_of_another_frequency_are_kept(tmp_path):
    trainer(out=tmp_path).fit(8, progress=False)
    assert [row["step"] for row in resumed(tmp_path, log_every=5).fit(11, progress=False).history] == [4, 8, 10, 11]


@pytest.mark.parametrize("columns", [FIRST, SECOND])
def test_metrics_of_an_older_version_are_read_and_gone_on_with(columns, tmp_path):
    trainer(out=tmp_path).fit(8, progress=False)
    file = tmp_path / "metrics.csv"
    lines = [line.split(",")[: len(columns)] for line in file.read_text().splitlines()]
    file.write_text("".join(",".join(cells) + "\n" for cells in lines))
    rest = resumed(tmp_path)
    assert [row["step"] for row in rest.history] == [4, 8] and rest.history[0]["loss_d"] > 0
    rest.fit(12, progress=False)
    assert file.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [row["step"] for row in MetricsFile(file).read(100)] == [4, 8, 12]


@pytest.mark.parametrize(
    "metric, keys", [("diversity", {}), ("wasserstein", {"objective": "wasserstein"}), ("loss_g", {})]
)
def test_the_best_by_a_metric_is_kept(tmp_path, metric, keys):
    run = trainer(out=tmp_path, keep_best=metric, checkpoint_every=8, keep_checkpoints=1, **keys)
    run.fit(40, progress=False)
    means = {}
    for step in range(8, 41, 8):
        own = [row[metric] for row in run.history if step - 8 < row["step"] <= step]
        means[step] = sum(own) / len(own)
    distance = {"diversity": lambda v: abs(torch.tensor(v).log().item()), "wasserstein": abs, "loss_g": float}[metric]
    best = min(means, key=lambda step: distance(means[step]))
    (kept,) = (tmp_path / "checkpoints/best").iterdir()
    assert kept.name == f"step-{best:08d}"
    assert json.loads((kept / "manifest.json").read_text())["best"] == {"metric": metric, "value": means[best]}
    assert [path.name for path in checkpoint.whole(tmp_path / "checkpoints")] == ["step-00000040"]
    assert checkpoint.load(kept).step == best


def test_the_best_by_a_score_of_ones_own_survives_a_resumption(tmp_path):
    scores = {2: 1.0, 4: 3.0, 6: float("nan"), 8: 2.0, 10: 3.0, 12: 4.0}

    def score(run):
        torch.rand(3)  # a score that draws is no reason for another run
        return scores[run.step]

    trainer(out=tmp_path, keep_best=score, checkpoint_every=2).fit(8, progress=False)
    rest = resumed(tmp_path, keep_best=score, checkpoint_every=2)
    rest.fit(10, progress=False)
    (kept,) = (tmp_path / "checkpoints/best").iterdir()
    assert kept.name == "step-00000004"
    rest.fit(12, progress=False)
    assert checkpoint.load(*(tmp_path / "checkpoints/best").iterdir()).values["best"] == {
        "metric": "score",
        "value": 4.0,
    }
    plain = trainer().fit(12, progress=False)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.generator.parameters(), rest.generator.parameters(), strict=True)
    )


def test_the_best_is_kept_even_where_a_run_ends_in_the_middle_of_saving(tmp_path, monkeypatch):
    keys = {"keep_best": "loss_g", "checkpoint_every": 4}
    whole = trainer(out=tmp_path / "a", **keys).fit(12, progress=False)
    save = checkpoint.save
    for step in (4, 8, 12):
        folder = tmp_path / f"b{step}"

        def stopped(place, content, keep, step=step):
            written = save(place, content, keep)
            if content.step == step and place.name == "checkpoints":
                raise KeyboardInterrupt
            return written

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", stopped)
            with pytest.raises(KeyboardInterrupt):
                trainer(out=folder, **keys).fit(12, progress=False)
        resumed(folder, **keys).fit(12, progress=False)
        found = [[path.name for path in (run / "checkpoints/best").iterdir()] for run in (whole.out, folder)]
        assert found[0] == found[1], step


def test_a_metric_is_the_mean_since_it_was_last_asked(tmp_path):
    best = Best("diversity")
    best.begin(tmp_path, 8)
    history = [
        {"step": step, "diversity": value} for step, value in ((4, 9.0), (8, 9.0), (12, 1.0), (16, 2.0), (18, None))
    ]
    assert best.value(types.SimpleNamespace(history=history, step=18)) == 1.5
    assert best.value(types.SimpleNamespace(history=history, step=18)) is None


def test_a_metric_that_is_none_is_refused():
    with pytest.raises(UserError, match="did you mean 'diversity'"):
        trainer(keep_best="divesity")


def test_a_metric_that_the_run_will_not_have_is_refused():
    with pytest.raises(UserError, match="needs a critic"):
        trainer(keep_best="wasserstein")


class Recorded:
    """SummaryWriter, as far as it is used."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge, self.scalars, self.pictures, self.closed = folder, purge_step, [], [], False

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def add_image(self, name, picture, step, dataformats):
        self.pictures.append((name, picture.shape, step, dataformats))

    def close(self):
        self.closed = True


def test_tensorboard_gets_rows_and_pictures(tmp_path, monkeypatch):
    made = []
    writer = lambda *given, **keys: made.append(Recorded(*given, **keys)) or made[-1]  # noqa: E731
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=writer))
    keys = {"tensorboard": True, "sample_every": 4}
    (tmp_path / "samples").mkdir()
    trainer(out=tmp_path, **keys).fit(6, progress=False)
    resumed(tmp_path, **keys).fit(8, progress=False)
    first, second = made
    assert first.folder == str(tmp_path / "tensorboard") and (first.purge, second.purge) == (1, 7)
    assert first.closed and second.closed
    assert {step for _, _, step in first.scalars} == {4} and {step for _, _, step in second.scalars} == {8}
    assert {"loss_d", "loss_g", "d_real", "diversity"} <= {name for name, _, _ in first.scalars}
    assert [(name, step, form) for name, _, step, form in first.pictures] == [("samples", s, "HWC") for s in (4, 6)]
    assert first.pictures[0][1][2] == 3


def test_tensorboard_s_own_files(tmp_path):
    pytest.importorskip("tensorboard")
    trainer(out=tmp_path, tensorboard=True).fit(8, progress=False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss_d")] == [4, 8]
    assert events.Images("samples")


def test_tensorboard_that_is_missing_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"fastgan\[tensorboard\]"):
        trainer(tensorboard=True, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_how_steps_run_is_said(monkeypatch):
    assert trainer().describe_device().endswith("steps: eagerly, because a CUDA graph needs a GPU")
    with strict():
        assert trainer().describe_device().endswith("steps: one CUDA graph replay")
        assert trainer(unroll=4).describe_device().endswith("steps: 4 in one CUDA graph replay")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_several_steps_at_a_time_and_a_second_one_at_once(tmp_path, number, code, times):
    def own(*_):
        raise KeyboardInterrupt

    former = {known: signal.signal(known, own) for known in (signal.SIGINT, signal.SIGTERM)}
    try:
        with strict():
            run = trainer(out=tmp_path, unroll=3, log_every=9)
            several = run._run

            def signalled(patterns):
                several(patterns)
                for _ in range(times if run.step == 6 else 0):
                    signal.raise_signal(number)

            run._run = signalled
            if times == 1:
                assert run.fit(10**6, progress=False).exit_code == code
            else:
                with pytest.raises(KeyboardInterrupt):
                    run.fit(10**6, progress=False)
    finally:
        for known, handler in former.items():
            signal.signal(known, handler)
    assert run.step == (9 if times == 1 else 6)
    kept = [path.name for path in checkpoint.whole(tmp_path / "checkpoints")]
    assert kept == (["step-00000009"] if times == 1 else [])
    assert not (tmp_path / NAME).exists()
