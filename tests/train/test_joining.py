"""What the environment says of a team: who is meant, and one line for what makes no sense."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
import torch

from fastgan.errors import LostPeersError, UserError
from fastgan.train import joining, probe
from fastgan.train.distributed import Team

WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    def be(**settings):
        for name in (*joining.DESCRIBED, "LOCAL_RANK", "LOCAL_WORLD_SIZE", joining.TIMEOUT):
            monkeypatch.delenv(name, raising=False)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    be()
    return be


def told(text):
    """Whether this process says it."""
    lines = []
    joining.say_once(text, lines.append)
    return lines == [text]


@pytest.mark.parametrize(
    "settings", [{}, {"WORLD_SIZE": ""}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, {"LOCAL_RANK": "2"}]
)
def test_nobody_else_is_a_team_of_one(environment, settings):
    environment(**settings)
    team = joining.join("cpu")
    assert (team.rank, team.size, team.many, team.first, team.device.type) == (0, 1, False, True, "cpu")
    assert team.peers(0) is None and team.own_seed(7) == 7 and team.part(5) == (0, 5)
    assert joining.alone() and team.lead(lambda: 3) == 3 and team.told("x") == "x" and team.most(2) == 2


def test_a_whole_description_is_taken(environment):
    environment(**WHOLE)
    assert joining._described() == (1, 4) and not joining.alone()


@pytest.mark.parametrize(
    "changed, text",
    [
        ({"RANK": ""}, "RANK not set"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE not set"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR, MASTER_PORT not set"),
        ({"RANK": "4"}, "RANK=4 WORLD_SIZE=4 is no process of a team"),
        ({"RANK": "one"}, "RANK=one"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"WORLD_SIZE": "1"}, "RANK=1 WORLD_SIZE=1"),
    ],
)
def test_half_a_description_is_refused_in_a_line(environment, changed, text):
    environment(**{**WHOLE, **changed})
    with pytest.raises(UserError, match=text) as error:
        joining.join("cpu")
    assert "\n" not in str(error.value) and "torchrun" in str(error.value)
    assert told(str(error.value))  # whoever has it: the others may be well


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "inf", "nan"])
def test_timeout_has_to_be_a_number_of_seconds(environment, seconds):
    environment(**WHOLE, FASTGAN_TIMEOUT=seconds)
    with pytest.raises(UserError, match="FASTGAN_TIMEOUT="):
        joining.join("cpu")


def test_others_that_do_not_come_are_said_in_a_line(environment):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    environment(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, FASTGAN_TIMEOUT="1")
    with pytest.raises(UserError, match=f"rank 0 did not meet the 2 processes at 127.0.0.1:{port} within 1 s") as error:
        joining.join("cpu")
    assert "\n" not in str(error.value) and not torch.distributed.is_initialized()


def test_a_process_that_cannot_ask_the_others_says_it_itself(environment, monkeypatch):
    environment(**{**WHOLE, "MASTER_ADDR": ""})
    assert told("as it was before anybody met")
    environment(**WHOLE)
    monkeypatch.setattr(joining, "_apart", True)
    monkeypatch.setattr(joining, "_store", torch.distributed.HashStore())
    assert told("they met, and then did not become a team")


def test_the_first_that_asks_says_it(environment, monkeypatch):
    environment(**WHOLE)
    monkeypatch.setattr(joining, "_apart", False)
    monkeypatch.setattr(joining, "_store", torch.distributed.HashStore())
    assert [told("a"), told("a"), told("b")] == [True, False, True]


def test_a_process_that_is_gone_is_no_misfit_of_networks():
    def network(z):
        raise LostPeersError("connection closed")

    with pytest.raises(LostPeersError):
        probe._ask("generator", network, torch.zeros(2, 3))


def test_each_process_takes_its_own_gpu(environment, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    environment(LOCAL_RANK="3", LOCAL_WORLD_SIZE="4")
    assert [str(joining._device(name)) for name in ("auto", "cuda", "cpu")] == ["cuda:3", "cuda:3", "cpu"]
    with pytest.raises(UserError, match="cuda:1: with several processes each takes the GPU"):
        joining._device("cuda:1")
    environment(LOCAL_RANK="4", LOCAL_WORLD_SIZE="8")
    with pytest.raises(UserError, match=r"8 processes and 4 GPUs here: .*--nproc-per-node 4"):
        joining._device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # as a batch system shows each its own
    assert str(joining._device("auto")) == "cuda:0"


def test_two_processes_on_one_gpu_are_refused():
    joining._refuse_shared(["a 1", "a 2", "b 1", "b 2"])
    joining._refuse_shared(["", ""])
    with pytest.raises(UserError, match="3 processes and 2 GPUs of b"):
        joining._refuse_shared(["a 1", "b 1", "b 2", "b 1"])


def test_batches_are_shared_out_without_rest():
    teams = [Team(torch.device("cpu"), rank, 3) for rank in range(3)]
    assert [team.part(12) for team in teams] == [(0, 4), (4, 4), (8, 4)]
    assert len({team.own_seed(5) for team in teams} | {5}) == 4
    for wrong in (2, 13):
        with pytest.raises(UserError, match=f"batch_size {wrong} .* 3 processes: take a multiple of 3"):
            teams[0].part(wrong)


def test_uuid_of_a_card_tells_it_apart(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda where: SimpleNamespace(uuid="GPU-1"))
    assert joining._uuid(torch.device("cuda:0")) == "GPU-1"
