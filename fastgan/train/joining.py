"""How processes become a team, and take leave: by torchrun's environment, or an initialised torch.distributed.

torchrun says who they are by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without any of it, and with
nobody else, a process is a team of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.nn.synced_batch_norm import sync
from fastgan.presets import Config
from fastgan.train import build
from fastgan.train.distributed import Team

TIMEOUT = "FASTGAN_TIMEOUT"  # seconds that a process waits for the others
DESCRIBED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ASKED = 3.0  # seconds in which processes that fail alike ask who says so

_store: Any = None  # what the processes met at
_apart = False  # whether this one has not found the others, and is on its own with what it has to say


def join(device: str) -> Team:
    """The team that the environment or an initialised torch.distributed describes; who is alone is a team of one.

    ``device`` as the configuration names it: ``auto`` and ``cuda`` are the GPU that LOCAL_RANK numbers. Raises
    UserError, in all processes, for a device that one of them lacks or two share.
    """
    joined = dist.is_available() and dist.is_initialized()
    if not joined:
        global _apart
        _apart = True
        rank, size = _described()
        if size == 1:
            return Team(build.device(device))
        _meet(device, rank, size)
        _apart = False
    if dist.get_world_size() == 1:
        return Team(build.device(device))
    rank, size = dist.get_rank(), dist.get_world_size()
    control = None if "gloo" in str(dist.get_backend_config()) else _talking(size)
    team = Team(torch.device("cpu"), rank, size, control)
    where, problem = None, ""
    try:
        where = _device(device)
    except UserError as error:
        problem = str(error)
    place = "" if where is None or where.type == "cpu" else f"{socket.gethostname()} {_uuid(where)}"
    found = [json.loads(said) for said in team.said(json.dumps([problem, place]))]
    for problem, _ in found:
        if problem:
            raise UserError(problem)
    _refuse_shared([place for _, place in found])
    assert where is not None
    if where.type == "cuda":
        torch.cuda.set_device(where)
    return Team(where, rank, size, control)


def same_start(team: Team, networks: Sequence[nn.Module], config: Config, data: Dataset) -> None:
    """Have all processes start from the first one's weights, with norms that are synchronised.

    Raises UserError, in all, where they have different configurations or data, or networks that cannot be trained so.
    """
    if not team.many:
        return
    sizes = [list(tensor.shape) for network in networks for tensor in network.state_dict().values()]
    team.agree("configuration", repr(config))
    team.agree("data set", json.dumps([len(data), list(data.sample_shape)]))
    team.agree("pair of networks", json.dumps(sizes))
    for network in networks:
        sync(network)
    team.share_weights(networks)


def leave() -> None:
    """Take leave of the others at the end of a command, which a group of NCCL need not: its graphs hold on to it."""
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def alone() -> bool:
    """Whether nothing says that other processes take part."""
    joined = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() == 1 if joined else os.environ.get("WORLD_SIZE", "") in ("", "1")


def say_once(text: str, say: Callable[[str], None]) -> None:
    """Say what other processes may have to say as well, unless one has; who cannot ask the others says it."""
    if alone() or _apart or not dist.is_available():
        return say(text)
    key = f"fastgan/said/{hashlib.sha256(text.encode()).hexdigest()}"
    waits = timedelta(seconds=ASKED)
    try:
        rank, size = _described()
        store = _store or _found(waits)  # it may be wrong already what they were to do together
        first = store.add(key, 1) == 1
    except (RuntimeError, ValueError, OSError):  # nobody keeps count
        return say(text)
    if first:  # at once: the launcher ends all with the first that ends
        say(text)
    until = time.monotonic() + waits.total_seconds()
    with contextlib.suppress(RuntimeError):
        while rank == 0 and store.add(key, 0) < size and time.monotonic() < until:
            time.sleep(0.01)  # what it may hold for the others ends with it


def _timeout() -> timedelta:
    text = os.environ.get(TIMEOUT, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{TIMEOUT}={text}: it has to be a number of seconds above 0, such as 600")
    return timedelta(seconds=seconds)


def _described() -> tuple[int, int]:
    """Rank and size by the environment; (0, 1) where it says nothing of others."""
    given = {name: os.environ.get(name, "") for name in DESCRIBED}
    if given["WORLD_SIZE"] in ("", "1") and given["RANK"] in ("", "0"):
        return 0, 1
    how = "start all processes by torchrun, or unset RANK and WORLD_SIZE to train alone"
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise UserError(f"the environment describes a team by half: {', '.join(missing)} not set; {how}")
    try:
        rank, size = int(given["RANK"]), int(given["WORLD_SIZE"])
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        shown = f"RANK={given['RANK']} WORLD_SIZE={given['WORLD_SIZE']}"
        raise UserError(f"{shown} is no process of a team, whose ranks go from 0 to WORLD_SIZE - 1: {how}")
    return rank, size


def _meet(device: str, rank: int, size: int) -> None:
    """Wait for the others where the environment says."""
    if not dist.is_available():
        raise UserError("this PyTorch is built without torch.distributed: train in one process, or install another")
    waits = _timeout()
    nccl = device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    global _store
    try:
        _store = _found(waits)
        within = dist.PrefixStore("fastgan", _store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=within, rank=rank, world_size=size, timeout=waits)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"rank {rank} did not meet the {size} processes at {where} within {waits.total_seconds():g} s: start all of"
            f" them with one address and WORLD_SIZE; {TIMEOUT} sets the seconds ({reason})"
        ) from error


def _found(waits: timedelta) -> Any:
    """The store that the environment says, which keeps what processes tell each other before they are a team."""
    return next(iter(dist.rendezvous("env://", timeout=waits)))[0]  # type: ignore[attr-defined]


def _talking(size: int) -> Any:
    return dist.new_group(list(range(size)), timeout=_timeout(), backend="gloo")


def _device(name: str) -> torch.device:
    """The device of this process."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        build.device(name)
        raise UserError(
            f"--device {name}: with several processes each takes the GPU of its LOCAL_RANK; use --device cuda"
        )
    count = torch.cuda.device_count()
    if count == 0:
        return build.device(name)
    local = os.environ.get("LOCAL_RANK", "")
    own = int(local) if local.isdecimal() else dist.get_rank() % count
    if own >= count > 1:
        raise _too_many(os.environ.get("LOCAL_WORLD_SIZE", str(own + 1)), count)
    return torch.device("cuda", min(own, count - 1))  # a batch system may show each process its own GPU alone


def _uuid(where: torch.device) -> str:
    return str(getattr(torch.cuda.get_device_properties(where), "uuid", where))


def _refuse_shared(places: Sequence[str]) -> None:
    """Raise UserError where two processes have one GPU; ``places``: host and GPU of each, empty on the CPU."""
    used = [place for place in places if place]
    for place in used:
        if used.count(place) > 1:
            host = place.split()[0]
            on_host = [other for other in used if other.split()[0] == host]
            raise _too_many(str(len(on_host)), len(set(on_host)), f" of {host}")


def _too_many(processes: str, gpus: int, where: str = " here") -> UserError:
    return UserError(
        f"there are {processes} processes and {gpus} GPUs{where}: start as many as there are GPUs"
        f" (torchrun --nproc-per-node {gpus}), or use --device cpu"
    )
