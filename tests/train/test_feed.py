"""Batches that are read ahead: those of a run whose data lie on the device, at their time, and nothing left behind."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastgan
from fastgan.data import Dataset, File
from fastgan.errors import UserError
from fastgan.train import checkpoint
from fastgan.train.capture import strict
from fastgan.train.draws import ClockDraws, HostDraws
from fastgan.train.metrics import COLUMNS
from fastgan.train.replays import Eagerly, Replays

DICE = random.Random(0)  # not the global one, which no captured step may move
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPE = (1, 6, 6)
SETTINGS = {
    "several updates": {"n_critic": 2, "noise": 0.3, "flip": True, "objective": "wasserstein"},
    "several at a time": {"unroll": 3, "log_every": 4},
    "one at a time": {"graph": False, "updates": "shared"},
}


def pixels(n=45):
    return torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def on_disk(tmp_path):
    """The pixels as a memory map."""
    path = tmp_path / "pixels.npy"
    np.save(path, pixels().numpy())
    array = np.load(path, mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Dataset("on disk", torch.from_numpy(array), file=File(path, array.offset))


def trainer(data=None, *, device="cpu", **keys):
    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(3, 36), nn.Tanh(), nn.Unflatten(1, SHAPE))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    keys = {"z_dim": 3, "batch_size": 8, "log_every": 1, "device": device, "resident": "never", **keys}
    data = Dataset.from_tensor(pixels()) if data is None else data
    return fastgan.Trainer(generator=generator, discriminator=critic, data=data, **keys)


def state(run):
    return [*run.generator.state_dict().values(), *run.discriminator.state_dict().values()]


def rows(run):
    times = ("seconds", "memory", "stalled")
    return [[row.get(name) for name in COLUMNS if name not in times] for row in run.history]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True)) and rows(one) == rows(other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_fed_run_is_the_run_whose_data_lie_on_the_device(name, device, on_disk, slow):
    """Captured as that one is, from memory and from a disk, with readers that overtake each other: over two epochs."""
    keys = {"device": device, **SETTINGS[name]}
    with strict():
        resident = trainer(resident="auto", **keys).fit(12, progress=False)
        assert resident._draws.feeder is None and {row["stalled"] for row in resident.history} == {None}
        with slow(lambda: DICE.random() * 0.002):
            run = trainer(on_disk if name == "several updates" else None, **keys).fit(5, progress=False)
            run.fit(12, progress=False)
    assert isinstance(run._draws, ClockDraws) and run._draws.feeder
    assert isinstance(run._run, Eagerly if name == "one at a time" else Replays)
    assert run._draws.feeder.ring.device.type == device
    assert same(run, resident)


@pytest.mark.parametrize("flip", [False, True])
def test_on_a_cpu_the_run_stays_what_it_was(flip, on_disk, slow):
    plain = trainer(resident="auto", flip=flip).fit(12, progress=False)
    assert isinstance(plain._draws, HostDraws) and plain._draws.feeder is None
    for data, resident in ((None, "never"), (on_disk, "auto")):
        with slow(lambda: DICE.random() * 0.002):
            run = trainer(data, resident=resident, flip=flip).fit(5, progress=False).fit(12, progress=False)
        assert isinstance(run._draws, HostDraws) and run._draws.feeder and same(run, plain)


def test_points_are_fed_too():
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3
    runs = []
    for captured, resident in ((False, "auto"), (False, "never"), (True, "auto"), (True, "never")):
        with strict() if captured else warnings.catch_warnings():
            runs.append(
                fastgan.Trainer("ring8", data=points, batch_size=16, log_every=2, resident=resident, device="cpu")
            )
            runs[-1].fit(8, progress=False)
    assert same(*runs[:2]) and same(*runs[2:]) and runs[1]._draws.feeder and runs[3]._draws.feeder


@pytest.mark.parametrize("captured", [False, True])
def test_a_resumed_run_reads_on_where_it_was(captured, tmp_path):
    """Also where it is resumed with the data on the device."""
    with strict() if captured else warnings.catch_warnings():
        whole = trainer(n_critic=2).fit(7, progress=False)
        trainer(n_critic=2, out=tmp_path).fit(4, progress=False)
        for after in ("never", "auto"):
            rest = trainer(n_critic=2, resident=after, readers=1, out=tmp_path)
            rest.resume(checkpoint.load(tmp_path / "checkpoints/step-00000004"))
            if feeder := rest._draws.feeder:
                rows, read = feeder.rows, []
                feeder.rows = lambda number, rows=rows, read=read: read.append(number) or rows(number)
            assert same(rest.fit(7, progress=False), whole)
    assert read[0] == 4 * 2


@pytest.mark.parametrize("captured", [False, True])
def test_a_run_that_is_rolled_back_reads_again_what_it_has_read(captured, reading):
    runs = []
    with strict() if captured else warnings.catch_warnings():
        for resident in ("auto", "never"):
            run = trainer(resident=resident, on_nan="rollback", checkpoint_every=2)
            steps = run._run

            def spoiled(patterns, run=run, steps=steps):
                steps(patterns)
                if run.step == 3 and run.slowed == 1:
                    run.discriminator[1].bias.data.fill_(float("nan"))

            run._run = spoiled
            runs.append(run.fit(6, progress=False))
    assert [run.slowed for run in runs] == [0.5, 0.5] and same(*runs) and not reading()


def test_batches_larger_than_the_data_are_refused():
    with pytest.raises(UserError, match="batch_size 46 is larger than the data set"), strict():
        trainer(batch_size=46)
    with pytest.raises(UserError, match="readers must be at least 0"):
        trainer(readers=-1)
    with pytest.raises(UserError, match="resident"):
        trainer(resident="sometimes")


@pytest.mark.parametrize("captured", [False, True])
def test_a_disk_that_fails_ends_the_run_in_one_line(captured, on_disk, tmp_path, reading):
    """The steps before it are made and kept; when the disk is back the run is resumed."""
    size = int(np.prod(SHAPE))
    content = on_disk.file.path.read_bytes()
    with strict() if captured else warnings.catch_warnings():
        run = trainer(on_disk, out=tmp_path / "run", checkpoint_every=2, readers=1)
        on_disk.file.path.write_bytes(content[:-size])
        with pytest.raises(UserError, match=r"pixels\.npy cannot be read \(it is shorter than it was\)") as caught:
            run.fit(10, progress=False)
        assert "\n" not in str(caught.value) and run.step == 0 and not reading()
        on_disk.file.path.write_bytes(content)
        run.fit(3, progress=False)

        def cut(number, rows=run._draws.feeder.rows):
            if number == 7:
                on_disk.file.path.write_bytes(content[: on_disk.file.offset])
            return rows(number)

        run._draws.feeder.rows = cut
        with pytest.raises(UserError, match="shorter than it was"):
            run.fit(10, progress=False)
        assert run.step == 7 and not reading()
        assert [row["step"] for row in run.history] == [1, 2, 3, 4, 5, 6, 7]
        on_disk.file.path.write_bytes(content)
        run._draws.feeder.rows = cut.__defaults__[0]
        assert same(run.fit(10, progress=False), trainer(on_disk).fit(10, progress=False))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_behind_by_an_exception_either(error, slow, reading):
    run = trainer()
    draw, torn = run._draws.z, []

    def tears(at):
        if run.step == 5 and not torn:
            torn.append(at)
            raise error
        return draw(at)

    run._draws.z = tears
    with slow(lambda: 0.001), pytest.raises(error):
        run.fit(9, progress=False)
    assert not reading() and run._draws.feeder._session is None
    run.fit(9, progress=False)  # goes on
    assert run.step == 9 and not reading()


def test_time_that_steps_wait_is_told(tmp_path, capsys, slow):
    with slow(lambda: 0.02):
        run = trainer(readers=1, log_every=3, out=tmp_path).fit(14)
    assert [row["step"] for row in run.history] == [3, 6, 9, 12, 14]
    assert all(0.015 < row["stalled"] < 0.2 * 3 for row in run.history[1:])
    said = capsys.readouterr().err
    assert said.count("of the time for data") == 1 and "readers=2" in said and "stalled=" in said
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0].endswith(",stalled")
    before = sum(row["stalled"] for row in run.history[:-1])
    with slow(lambda: 0.02):
        run.fit(15)  # the row that was not whole is written anew, with all that it has waited
    assert [row["step"] for row in run.history] == [3, 6, 9, 12, 15]
    assert sum(row["stalled"] for row in run.history) > before + 2 * 0.015
    trainer(readers=1).fit(4)
    assert "of the time for data" not in capsys.readouterr().err


def test_the_run_says_how_it_is_fed():
    assert "data: read ahead by 3 threads" in trainer(readers=3).describe_device()
    assert "read ahead" not in trainer(resident="auto").describe_device()


@pytest.mark.gpu
def test_waiting_is_counted_where_the_gpu_has_nothing_to_do(slow, reading):
    run = trainer(device="cuda", readers=1, log_every=5)
    run.fit(5, progress=False)
    with slow(lambda: 0.02):
        run.fit(25, progress=False)
    assert all(0.05 < row["stalled"] < 0.2 for row in run.history[2:])
    assert not reading()
