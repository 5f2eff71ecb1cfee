"""Several processes train one run as one process does with the whole batch; what is wrong in one, all say."""

import json
import math
import multiprocessing
import os
import re
import runpy
import socket
from pathlib import Path

import pytest
import torch

import fastgan
from fastgan.nn.synced_batch_norm import sync
from fastgan.ops.peers import Peers

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch.distributed with gloo", allow_module_level=True)

SCRIPT = Path(__file__).with_name("team_jobs.py")
JOBS = runpy.run_path(str(SCRIPT))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def be(rank, size, port, folder, jobs):
    runpy.run_path(str(SCRIPT))["main"](rank, size, port, folder, jobs)


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """Have so many processes do jobs; return the folder that they wrote to."""
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":  # the last is what torch.optim imports at its first use
        context.set_forkserver_preload(["fastgan.train", "safetensors.torch", "tqdm.auto", "yaml", "torch._dynamo"])

    def run(size, *jobs, folder=None):
        folder, port = folder or tmp_path_factory.mktemp("team"), free_port()
        processes = [context.Process(target=be, args=(rank, size, port, folder, jobs)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(100)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        logs = "".join(path.read_text() for path in sorted(folder.glob("log.*")))
        assert codes == [0] * size, logs[-3000:]
        return folder

    return run


@pytest.fixture(scope="module")
def pair(team):
    return team(2, "cases", "mishaps", "norms", "wrapped", "streams")


@pytest.fixture(scope="module")
def three(team):
    return team(3, "norms", "cases")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process leaves of each case."""
    found, kept = {}, {}

    def run(name):
        if name not in found:
            if name == "own":
                found[name] = JOBS["left"](JOBS["own_networks"]())
            else:
                plain, captured, _ = name.partition(" captured")
                found[name] = JOBS["left"](JOBS["trained"](plain, captured=bool(captured)))
        return found[name]

    kept["threads"] = torch.get_num_threads()
    yield run
    torch.set_num_threads(kept["threads"])


NAMES = [*JOBS["CASES"], "own", *(f"{name} captured" for name in JOBS["CAPTURED"])]


def compare(one, many):
    """Rows and tensors of two runs, to the rounding of sums in another order."""
    assert len(one["rows"]) == len(many["rows"]) > 0
    for row, other in zip(one["rows"], many["rows"], strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {"seconds", "memory"}:
            if isinstance(row[key], float):
                assert math.isclose(row[key], other[key], rel_tol=2e-4, abs_tol=2e-5), (key, row[key], other[key])
            else:
                assert row[key] == other[key], key
    assert one["tensors"].keys() == many["tensors"].keys()
    for key, tensor in one["tensors"].items():
        torch.testing.assert_close(
            many["tensors"][key], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one_does(pair, alone, name):
    many = [torch.load(pair / f"{name}.{rank}.pt", weights_only=True) for rank in range(2)]
    compare(alone(name), many[0])
    same(*many)


def test_some_updates_of_the_balanced_case_are_skipped(pair):
    rows = torch.load(pair / "balanced.1.pt", weights_only=True)["rows"]
    assert 0 < sum(row["balanced"] for row in rows) < 24


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_three_processes_train_as_one_does(three, alone, name):
    many = [torch.load(three / f"{name}.{rank}.pt", weights_only=True) for rank in range(3)]
    compare(alone(name), many[0])
    same(*many)


def same(first, *others):
    """All processes have the same weights, averages and buffers, to the bit, and the same rows."""
    for other in others:
        assert [{**row, "seconds": 0} for row in other["rows"]] == [{**row, "seconds": 0} for row in first["rows"]]
        assert all(torch.equal(other["tensors"][key], tensor) for key, tensor in first["tensors"].items())


def check_norms(folder, size, tmp_path):
    JOBS["norms"](0, 1, tmp_path)
    whole = torch.load(tmp_path / "norms.0.pt", weights_only=True)
    parts = [torch.load(folder / f"norms.{rank}.pt", weights_only=True) for rank in range(size)]
    for kind, values in whole.items():
        for at, value in enumerate(values[:3]):
            together = torch.cat([part[kind][at] for part in parts])
            torch.testing.assert_close(together, value, rtol=1e-9, atol=1e-10)
        for part in parts:
            torch.testing.assert_close(part[kind][3:], values[3:], rtol=1e-12, atol=1e-12)


def test_norms_of_two_parts_are_those_of_the_whole_batch(pair, tmp_path):
    check_norms(pair, 2, tmp_path)


@pytest.mark.full
def test_norms_of_three_parts_are_those_of_the_whole_batch(three, tmp_path):
    check_norms(three, 3, tmp_path)


def test_dropout_is_each_processs_own_and_resumes(pair, tmp_path):
    found = [torch.load(pair / f"streams.{rank}.pt", weights_only=True) for rank in range(2)]
    for each in found:  # rows from before lie in a file that the first one alone reads
        each["half"]["rows"][:] = each["whole"]["rows"][:2] + each["half"]["rows"][-1:]
    same(found[0]["whole"], found[1]["whole"], *(each["half"] for each in found))
    assert all(torch.equal(*each["drawn"]) for each in found)
    assert not torch.equal(found[0]["drawn"][0], found[1]["drawn"][0])
    trainer = JOBS["dropping"](tmp_path, 10, resumed=pair / "half")  # alone it goes on with other numbers
    assert trainer.step == 10 and trainer.history[0] == trainer.history[0]


MISHAPS = {
    "batch": ("UserError", "batch_size 13 .* 2 processes: take a multiple of 2"),
    "device": ("UserError", "cuda:0: "),
    "configuration": ("UserError", "rank 1 has another configuration than rank 0"),
    "data": ("UserError", "rank 1 has another data set than rank 0"),
    "norm": ("UserError", "1 is a Strange, which several processes cannot train together"),
    "nan": ("NonFiniteError", "not finite at step 6"),
    "folder": ("", "file"),
    "best": ("UserError", "best/step-00000003 is damaged: manifest.json is not JSON"),
    "board": ("UserError", "tensorboard=true needs the package 'tensorboard'"),
}


@pytest.mark.parametrize("mishap", MISHAPS)
def test_all_processes_say_what_is_wrong_in_one(pair, mishap):
    kind, text = MISHAPS[mishap]
    told = [json.loads((pair / f"mishaps.{rank}.json").read_text())[mishap] for rank in range(2)]
    if mishap == "folder":
        told[0] = told[1]  # what the first one raises itself is the system's error
    assert told[0] == told[1] and told[0][0] == (kind or told[0][0])
    assert re.search(text, told[0][1])


def test_layers_keep_their_gradients_under_ddp(pair):
    found = [torch.load(pair / f"ddp.{rank}.pt", weights_only=True) for rank in range(2)]
    for result in found:
        for ours, theirs in zip(*result["gradients"], strict=True):
            torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(found[0]["weights"], found[1]["weights"], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["critics", "both normalised"])
def test_reductions_are_captured_with_the_step(name):
    """One process that reduces with itself over NCCL does as one that does not."""
    preset, keys = JOBS["CASES"][name]
    plain, reducing = (fastgan.Trainer(preset, **{**keys, "device": "cuda"}) for _ in range(2))
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        sync(reducing.generator)
        sync(reducing.discriminator)
        generator = torch.Generator("cuda").manual_seed(plain.config.seed)
        reducing._iterate.peers = reducing._meter._team = Peers(0, 1, None, generator)
        reducing._run = reducing._runner()
        for trainer in (plain, reducing):
            trainer.fit(6, progress=False)
        compare(JOBS["left"](plain), JOBS["left"](reducing))
    finally:
        torch.cuda.synchronize()
        del reducing
        torch.distributed.destroy_process_group()
