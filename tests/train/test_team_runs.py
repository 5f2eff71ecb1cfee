"""``fastgan train`` by several processes: killed, told to stop, or sent away by a batch system, it goes on exactly."""

import csv
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro")
if os.name != "posix" or not torch.distributed.is_available():
    pytest.skip("torch.distributed, and kill -9 and signals as POSIX has them", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
PENALTY = ("--set", "penalty.name=gradient_penalty", "--set", "penalty.weight=1.0")
SETTINGS = [
    *("gan-digits", "--steps", "40", "--batch-size", "16", "--device", "cpu", "--out", "run", *PENALTY),
    *("--set", "generator.hidden=[16,16]", "--set", "discriminator.hidden=[16]", "--set", "z_dim=4"),
    *("--set", "log_every=7", "--set", "sample_every=1000", "--set", "checkpoint_every=5", "--set", "threads=1"),
]
CHILD = """
import os, sys
from fastgan.cli import main
os.chdir(folder)
sys.stdout = sys.stderr = open(f"log.{rank}", "a")
names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
os.environ.update({name: str(value) for name, value in names.items()}, FASTGAN_TIMEOUT="60")
sys.exit(main(["train", *arguments]))
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a team of ``fastgan train``, forked from a process that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    preload = ["fastgan.cli.train", "matplotlib.figure", "safetensors.torch", "tqdm.auto", "yaml", "torch._dynamo"]
    context.set_forkserver_preload(preload)
    script = tmp_path_factory.mktemp("child") / "child.py"
    script.write_text(CHILD)

    def processes(folder, *arguments, size=2):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        children = []
        for rank in range(size):
            given = {"folder": str(folder), "arguments": arguments, "rank": rank, "size": size, "port": port}
            children.append(context.Process(target=runpy.run_path, args=(str(script), given)))
            children[-1].start()
        return children

    return processes


def ended(children, seconds=100):
    """The exit codes of all, who have to end by themselves."""
    deadline = time.monotonic() + seconds
    for child in children:
        child.join(max(0.1, deadline - time.monotonic()))
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    return codes


def logs(folder):
    return "".join(path.read_text() for path in sorted(folder.glob("log.*")))


def outcome(folder):
    with (folder / "run/metrics.csv").open() as file:
        metrics = [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    last = folder / "run/checkpoints/step-00000040"
    return metrics, {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, start):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(start(folder, *SETTINGS)) == [0, 0], logs(folder)
    said = logs(folder)
    assert "batch 16 (8 on each of 2 processes)" in said and said.count("done at step 40") == 1
    assert (folder / "log.1").read_text() == ""
    return outcome(folder)


def wait_for(pattern, folder, children):
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert all(child.is_alive() for child in children), logs(folder)
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.full), 1])
def test_killed_process_ends_the_job_and_the_run_goes_on_exactly(tmp_path, start, undisturbed, rank):
    children = start(tmp_path, *SETTINGS, "--steps", "1000000")
    wait_for("run/checkpoints/step-*10", tmp_path, children)
    children[rank].kill()
    before = time.monotonic()
    codes = ended(children, 30)
    assert time.monotonic() - before < 20
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 1, logs(tmp_path)
    assert "another process of the job has ended" in logs(tmp_path) and "Traceback" not in logs(tmp_path)
    for late in [path for path in (tmp_path / "run/checkpoints").iterdir() if int(path.name[-8:]) > 40]:
        shutil.rmtree(late)  # as if it had been killed earlier
    assert ended(start(tmp_path, *SETTINGS, "--resume")) == [0, 0], logs(tmp_path)
    assert outcome(tmp_path) == undisturbed
    assert not list((tmp_path / "run").rglob(".writing-*"))


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_signal_to_one_process_saves_and_ends_all(tmp_path, start, undisturbed, number):
    children = start(tmp_path, *SETTINGS, "--set", "checkpoint_every=3")
    wait_for("run/checkpoints/step-*", tmp_path, children)
    os.kill(children[1].pid, number)
    assert ended(children) == [128 + number] * 2, logs(tmp_path)
    step = int(re.search(r"stopped and saved at step (\d+)", logs(tmp_path))[1])
    assert (tmp_path / f"run/checkpoints/step-{step:08d}/manifest.json").exists() and step < 40
    assert ended(start(tmp_path, *SETTINGS, "--resume")) == [0, 0], logs(tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("wrong, said", [(("--batch-size", "15"), "batch_size 15"), (("--ensemble", "2"), "ensemble")])
def test_what_all_would_say_is_said_once(tmp_path, start, wrong, said):
    """Before they have met, too."""
    assert ended(start(tmp_path, *SETTINGS, *wrong)) == [2, 2]
    lines = [line for line in logs(tmp_path).splitlines() if line.startswith("fastgan:")]
    assert len(lines) == 1 and said in lines[0] and not (tmp_path / "run").exists()


def torchrun(folder, *arguments):
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FASTGAN_TIMEOUT": "60"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "-m", "fastgan", "train", *arguments],
        cwd=folder,
        env={**os.environ, **settings},
        stdout=(folder / "log.0").open("a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.full
def test_torchrun_ends_and_resumes(tmp_path, undisturbed):
    job = torchrun(tmp_path, *SETTINGS, "--steps", "1000000")
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("run/checkpoints/step-*10")):
        assert job.poll() is None and time.monotonic() < deadline, logs(tmp_path)
        time.sleep(0.01)
    workers = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    assert job.wait(30) != 0
    for late in [path for path in (tmp_path / "run/checkpoints").iterdir() if int(path.name[-8:]) > 40]:
        shutil.rmtree(late)
    assert torchrun(tmp_path, *SETTINGS, "--resume").wait(100) == 0, logs(tmp_path)
    assert outcome(tmp_path) == undisturbed


STANDS_FOR = {  # what Slurm has on a cluster: two tasks here, and a note of what is asked for
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do SLURM_PROCID=$rank SLURM_NTASKS=2 SLURM_LOCALID=$rank "$@" >> "log.$rank" 2>&1 & tasks+=($!); done
trap 'kill -USR1 "${tasks[@]}"' USR1
for task in "${tasks[@]}"; do
  while kill -0 $task 2> /dev/null; do wait $task; code=$?; done
done
exit $code
""",
    "scontrol": """#!/bin/bash
if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >> asked; fi
""",
}


@pytest.mark.full
def test_the_example_for_slurm_goes_back_into_the_queue(tmp_path, undisturbed):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in STANDS_FOR.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    settings = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    settings |= {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "here", "OMP_NUM_THREADS": "1", "FASTGAN_TIMEOUT": "60"}

    def job():
        command = ["bash", str(ROOT / "examples/slurm.sbatch"), *SETTINGS, "--set", "checkpoint_every=2"]
        return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **settings}, start_new_session=True)

    first = job()
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("run/checkpoints/step-*")):
        assert first.poll() is None and time.monotonic() < deadline, logs(tmp_path)
        time.sleep(0.005)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(60) == 138, logs(tmp_path)
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert job().wait(100) == 0, logs(tmp_path)
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert outcome(tmp_path) == undisturbed
