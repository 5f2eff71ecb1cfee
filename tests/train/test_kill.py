"""kill -9 at any moment: ``--resume`` continues from the last whole checkpoint, exactly as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("tyro")

SETTINGS = [
    *("gan-digits", "--steps", "60", "--batch-size", "16", "--device", "cpu", "--out", "run"),
    *("--set", "generator.hidden=[16,16]", "--set", "discriminator.hidden=[16]", "--set", "z_dim=4"),
    *("--set", "log_every=7", "--set", "sample_every=1000", "--set", "checkpoint_every=5"),
]
DIES_WHILE_WRITING = """
import os, signal, sys
from fastgan.train import checkpoint
from fastgan.cli import main
write, calls = checkpoint._write, iter(range(1000))
def dying(path, content):
    if next(calls) == {at}:
        path.write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
checkpoint._write = dying
main(sys.argv[1:])
"""


def command(*arguments, program=("-m", "fastgan")):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("TRITON_INTERPRET", None)
    return {"args": [sys.executable, *program, "train", *arguments], "env": environment}


def finish(folder):
    done = subprocess.run(**command(*SETTINGS, "--resume"), cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def outcome(folder):
    lines = (folder / "run/metrics.csv").read_text().splitlines()
    metrics = [line.rsplit(",", 1)[0] for line in lines]  # without the seconds
    last = folder / "run/checkpoints/step-00000060"
    return metrics, {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(**command(*SETTINGS), cwd=folder, check=True, capture_output=True, timeout=120)
    return outcome(folder)


def wait_for(pattern, folder, process):
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize(
    "pattern", ["run/config.yaml", "run/checkpoints/step-00000005", "run/checkpoints/step-00000030"]
)
def test_killed_in_the_middle_of_a_run(tmp_path, undisturbed, pattern):
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(**command(*SETTINGS), cwd=tmp_path, stderr=log, stdout=log) as run,
    ):
        wait_for(pattern, tmp_path, run)
        run.kill()
    assert run.returncode == -signal.SIGKILL
    finish(tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("at", [0, 5, 11])  # the first file of the first checkpoint, ..., the manifest of the third
def test_killed_in_the_middle_of_a_checkpoint(tmp_path, undisturbed, at):
    program = ("-c", DIES_WHILE_WRITING.format(at=at))
    run = subprocess.run(**command(*SETTINGS, program=program), cwd=tmp_path, capture_output=True, timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert list((tmp_path / "run/checkpoints").glob(".writing-*"))
    assert f"at step {5 * (at // 4)}" in finish(tmp_path)
    assert outcome(tmp_path) == undisturbed
    assert not list((tmp_path / "run/checkpoints").glob(".writing-*"))


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_saves_and_says_how_to_go_on(tmp_path, undisturbed, number, code):
    endless = [*SETTINGS, "--steps", "1000000"]
    with subprocess.Popen(
        **command(*endless), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        wait_for("run/checkpoints/step-*", tmp_path, run)
        run.send_signal(number)
        said, _ = run.communicate(timeout=60)
    assert run.returncode == code
    assert "go on with: fastgan train --resume --out run" in said
    step = int(said.rsplit("saved at step ", 1)[1].split(";")[0])
    assert (tmp_path / f"run/checkpoints/step-{step:08d}/manifest.json").exists()
