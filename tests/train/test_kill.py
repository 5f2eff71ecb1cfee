"""kill -9 at any moment: ``--resume`` continues from the last whole checkpoint, exactly as if nothing had happened."""

import csv
import os
import random
import re
import signal
import time

import pytest

pytest.importorskip("tyro")
if os.name != "posix":
    pytest.skip("kill -9 and signals as POSIX has them", allow_module_level=True)

SETTINGS = [
    *("gan-digits", "--steps", "60", "--batch-size", "16", "--device", "cpu", "--out", "run"),
    *("--set", "generator.hidden=[16,16]", "--set", "discriminator.hidden=[16]", "--set", "z_dim=4"),
    *("--set", "log_every=7", "--set", "sample_every=1000", "--set", "checkpoint_every=5"),
]
CHILD = """
import os, signal, sys
from fastgan.cli import main
from fastgan.train import checkpoint
os.chdir(folder)
sys.stdout = sys.stderr = open("log", "a")
write, calls = checkpoint.write, iter(range(1000))
def dying(path, content):
    if next(calls) == dies_at:
        path.write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
checkpoint.write = dying
sys.exit(main(["train", *arguments]))
"""


@pytest.fixture(scope="module")
def start(spawn):
    """Start ``fastgan train`` in a process of its own."""

    def process(folder, *arguments, dies_at=-1):
        return spawn(CHILD, folder=str(folder), arguments=arguments, dies_at=dies_at)

    return process


@pytest.fixture
def finish(start, tmp_path):
    """Resume the run to its end; returns what the command said."""

    def resumed():
        (tmp_path / "log").write_text("")
        child = start(tmp_path, *SETTINGS, "--resume")
        child.join(120)
        said = (tmp_path / "log").read_text()
        assert child.exitcode == 0, said
        return said

    return resumed


def outcome(folder):
    with (folder / "run/metrics.csv").open() as file:
        metrics = [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    last = folder / "run/checkpoints/step-00000060"
    return metrics, {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, start):
    folder = tmp_path_factory.mktemp("undisturbed")
    child = start(folder, *SETTINGS)
    child.join(120)
    assert child.exitcode == 0, (folder / "log").read_text()
    return outcome(folder)


def wait_for(pattern, folder, child):
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert child.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("pattern", ["run/config.yaml", "run/checkpoints/step-*05", "run/checkpoints/step-*30"])
def test_killed_in_the_middle_of_a_run(tmp_path, start, finish, undisturbed, pattern):
    child = start(tmp_path, *SETTINGS)
    wait_for(pattern, tmp_path, child)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    finish()
    assert outcome(tmp_path) == undisturbed


def test_killed_at_random_moments(tmp_path, start, finish, undisturbed, full):
    moments = random.Random(0)
    for _ in range(30 if full else 4):
        child = start(tmp_path, *SETTINGS, "--resume")
        child.join(moments.uniform(0.05, 0.6))
        child.kill()
        child.join()
    finish()
    assert outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("at", [0, 5, 11])  # the first file of the first checkpoint, ..., the manifest of the third
def test_killed_in_the_middle_of_a_checkpoint(tmp_path, start, finish, undisturbed, at):
    child = start(tmp_path, *SETTINGS, dies_at=at)
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert list((tmp_path / "run/checkpoints").glob(".writing-*"))
    assert f"at step {5 * (at // 4)}" in finish()
    assert outcome(tmp_path) == undisturbed
    assert not list((tmp_path / "run/checkpoints").glob(".writing-*"))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_saves_and_goes_on_exactly(tmp_path, start, finish, undisturbed, number, code):
    child = start(tmp_path, *SETTINGS, "--steps", "1000000", "--set", "checkpoint_every=3")
    wait_for("run/checkpoints/step-*", tmp_path, child)
    os.kill(child.pid, number)
    child.join(60)
    said = (tmp_path / "log").read_text()
    assert child.exitcode == code, said
    assert "go on with: fastgan train --resume --out run" in said
    step = int(re.search(r"saved at step (\d+)", said)[1])
    assert (tmp_path / f"run/checkpoints/step-{step:08d}/manifest.json").exists()
    if step < 60:
        finish()
        assert outcome(tmp_path) == undisturbed
