"""What a captured step cannot do is said in one line, with the line that does it and what to write instead."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgan import optim
from fastgan.errors import UserError
from fastgan.train.capture import capture, strict
from fastgan.train.capture_graph import EagerRunner, Graph, refused
from fastgan.train.capture_optimizers import refuse

from_elsewhere, own_numbers = random.random, np.random.default_rng(0)
unlisted, outside = torch.Generator(), torch.zeros(3)
idle = nn.Linear(3, 1)
idle_step = torch.optim.SGD(idle.parameters())
schedule = torch.optim.lr_scheduler.ConstantLR(idle_step)


@pytest.fixture(autouse=True)
def rules() -> Iterator[None]:
    with strict():
        yield


class Asks(torch.autograd.Function):
    """A backward that reads a value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * gradient.sum().item()  # here


def backward(x: Tensor) -> None:
    Asks.apply(x.requires_grad_()).sum().backward()


def put(x: Tensor) -> None:
    x[x > 0] = torch.ones(3)


def twice(x: Tensor) -> float:
    y = x.sum()
    z = x + random.gauss(0, 1)  # here
    return y + z


STEPS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "item": (lambda x: x.sum().item(), "asks the device for a value"),
    "float": (lambda x: float(x[0]), "asks the device"),
    "bool": (lambda x: x if x.sum() > 0 else -x, "asks the device"),
    "equal": (lambda x: torch.equal(x, x), "asks the device"),
    "allclose": (lambda x: torch.allclose(x, x), "asks the device"),
    "tolist": (lambda x: x.tolist(), "asks the device"),
    "cpu": (lambda x: x.cpu(), "asks the device"),
    "numpy": (lambda x: x.numpy(), "asks the device"),
    "asarray": (lambda x: np.asarray(x), "asks the device"),
    "print": (lambda x: f"{x[0]:.3f}", "asks the device"),
    "repr": (lambda x: repr(x), "asks the device"),
    "range": (lambda x: range(x.sum().int()), "asks the device"),
    "clip": (lambda x: nn.utils.clip_grad_norm_([x.requires_grad_()], 1.0, error_if_nonfinite=True).item(), "asks the"),
    "backward": (backward, "asks the device"),
    "nonzero": (lambda x: x.nonzero(), "shape depends on values"),
    "where": (lambda x: torch.where(x > 0), "shape depends"),
    "masked_select": (lambda x: x.masked_select(x > 0), "shape depends"),
    "mask": (lambda x: x[x > 0], "shape depends"),
    "put": (put, "shape depends"),
    "unique": (lambda x: torch.unique(x), "shape depends"),
    "repeat": (lambda x: x.repeat_interleave(x.long()), "shape depends"),
    "random": (lambda x: x * random.random(), r"draws random numbers on the host.*\(random\)"),
    "gauss": (twice, r"draws random numbers on the host.*\(random\)"),
    "imported": (lambda x: x * from_elsewhere(), r"draws random numbers on the host.*\(random\)"),
    "shuffle": (lambda x: x * np.random.permutation(3).item(0), r"on the host.*\(numpy.random\)"),
    "generator": (lambda x: x + torch.rand(3, generator=unlisted), r"generator.*list it in state=\[...\]"),
    "own_numpy": (lambda x: x + torch.from_numpy(own_numbers.normal(size=3)), "brings data from the host"),
    "list": (lambda x: x + torch.tensor([1.0, 2.0, 3.0]), "brings data from the host"),
    "synchronize": (lambda x: torch.cuda.synchronize(), "waits for the device"),
    "stream": (lambda x: torch.cuda.Stream.synchronize(x), "waits for the device"),  # type: ignore[arg-type]
    "scaler": (lambda x: torch.amp.GradScaler("cpu").step(idle_step), "use bfloat16 without a scaler"),
    "schedule": (lambda x: schedule.step(), "call it after the captured step"),
    "outside": (lambda x: outside.add_(x), r"writes to a tensor, \(3,\) float32, that is not in state"),
    "view": (lambda x: outside[:2].flatten().mul_(x[:2]), r"writes to a tensor, \(2,\) float32, that is not in state"),
    "gradients": (lambda x: idle(x).backward(), r"writes to a tensor, \(1,.*\) float32, that is not in state"),
}


NO_GPU = ("synchronize", "stream", "scaler")  # an unwatched run would miss one


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", STEPS)
def test_forbidden_lines_are_named(name: str) -> None:
    step, said = STEPS[name]
    lines, first = inspect.getsourcelines(Asks if name == "backward" else step)
    line = first + next((at for at, text in enumerate(lines) if "# here" in text), 1 if step.__name__ == "put" else 0)
    stream, x = random.getstate(), torch.ones(3)
    with pytest.raises(UserError, match=said) as error:
        capture(step, state=[], warmup=1 if name in NO_GPU else 2)(x)
    assert f"{__file__}:{line} (`" in str(error.value) and "\n" not in str(error.value)
    assert random.getstate() == stream and x.tolist() == [1, 1, 1]
    outside.zero_()
    idle.zero_grad()


def test_what_a_graph_can_do_passes() -> None:
    noise = torch.Generator()
    count = torch.zeros((), dtype=torch.int64)

    def step(x: Tensor, at: Tensor) -> Tensor:
        y = x.masked_fill(x > 0, 2.0)
        y[y > 1] = 0.5
        y[:, 0] = 7
        y = y + torch.rand(y.shape, generator=noise) + torch.rand(3, generator=torch.default_generator)
        y = torch.where(y > 1, y, torch.tensor(0.0)).repeat_interleave(torch.tensor(2).expand(4), 0, output_size=8)
        y.mul_(torch.full((), 3.0)).index_add_(0, at, torch.ones(2, 3))
        count.add_(1)
        return y[at].expand(5, 2, 3) * torch.nn.functional.dropout(y[at])

    captured = capture(step, state=[noise, count], warmup=2)
    for expected in (1, 2, 3):
        captured(torch.randn(4, 3), torch.tensor([1, 0]))
        assert count.item() == expected


class Forgets(nn.Module):
    """Keeps what it saw in a new tensor each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.last = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + x
        return self.mean


def test_state_that_is_replaced_is_named() -> None:
    net = Forgets()
    with pytest.raises(UserError, match=r"reads state\[0\].mean and then puts another.*copy_"):
        capture(net, state=[net])(torch.ones(3))
    assert net.mean.tolist() == [0, 0, 0]

    def writes(x: Tensor) -> None:
        net.last = x * 2  # never read before: its latest value lies in the graph's memory

    captured = capture(writes, state=[net])
    captured(torch.ones(3))
    captured(torch.ones(3) * 2)
    assert net.last.tolist() == [4, 4, 4]

    def swaps(x: Tensor) -> None:
        net.mean.data = net.mean + x

    with pytest.raises(UserError, match=r"reads state\[0\].mean and then puts another"):
        capture(swaps, state=[net])(torch.ones(3))


def test_each_call_is_watched() -> None:
    asks = False
    captured = capture(lambda x: x.sum().item() if asks else x, state=[])
    captured(torch.ones(1))
    asks = True
    with pytest.raises(UserError, match="asks the device"):
        captured(torch.ones(1))


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2))]


def moving(device: str = "cpu") -> Tensor:
    return torch.tensor(0.25, device=device)


@pytest.mark.parametrize(
    "make, device, said",
    [
        (
            lambda: torch.optim.Adam(parameters(), lr=0.25),
            "cpu",
            r"Adam has the number 0.25 .* torch.optim.Adam\(param.*",
        ),
        (
            lambda: optim.Adam(parameters(), lr=0.25),
            "cpu",
            r"write fastgan.optim.Adam\(parameters, lr=torch.tensor\(0.25,",
        ),
        (
            lambda: torch.optim.AdamW(parameters(), lr=0.25),
            "cuda",
            r'write torch.optim.AdamW\(parameters, lr=torch.tensor\(0.25, device="cuda"\), capturable=True\), or',
        ),
        (
            lambda: torch.optim.SGD(parameters(), lr=0.25),
            "cuda",
            r'device="cuda"\), fused=True\), or fastgan.optim.SGD',
        ),
        (lambda: torch.optim.RAdam(parameters(), lr=moving()), "cuda", "learning rate on cpu.*RAdam.*capturable=True"),
        (lambda: torch.optim.LBFGS(parameters(), lr=moving()), "cpu", "LBFGS reads the device.*fastgan.optim.Adam"),
        (lambda: torch.optim.Adagrad(parameters(), lr=1.0), "cuda", "Adagrad reads the device"),
        (lambda: optim.RMSprop(parameters(), lr=0.25), "cuda", r"write fastgan.optim.RMSprop\(parameters, lr=torch"),
    ],
)
def test_optimisers_that_no_graph_can_step_are_refused(make: Any, device: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        refuse([[{"d": make()}]], torch.device(device))
    assert "\n" not in str(error.value)
    refuse([optim.Adam(parameters(), lr=moving()), torch.optim.NAdam(parameters(), lr=moving())], torch.device("cpu"))


def test_the_refusal_comes_first() -> None:
    ran = []
    with pytest.raises(UserError, match=r"write torch.optim.Adam\("):
        capture(lambda: ran.append(1), state=[torch.optim.Adam(parameters(), lr=0.25)])()
    assert not ran


def test_what_cuda_refuses_is_said_in_one_line() -> None:
    def step() -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand so on")

    with pytest.raises(RuntimeError) as error:
        step()
    told = str(refused(error.value))
    assert f"{__file__}:{inspect.getsourcelines(step)[1] + 1} (`raise" in told
    assert told.endswith("(CUDA error: operation not permitted when stream is capturing)") and "\n" not in told


class Breaks(EagerRunner):
    """A capture that fails."""

    def capture(self, step: Any, state: Any, first: Any) -> Any:
        step()
        raise UserError("no")


def test_a_failing_capture_leaves_everything_as_it_was() -> None:
    net = nn.BatchNorm1d(2)
    optimizer = optim.SGD(net.parameters(), lr=moving(), momentum=0.5)

    def step() -> Tensor:
        loss = net(torch.randn(4, 2)).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    before = {name: value.clone() for name, value in net.state_dict().items()}
    stream = torch.get_rng_state()
    with pytest.raises(UserError, match="no"):
        Graph(step, [net, optimizer], Breaks())()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not optimizer.state and net.weight.grad is None and torch.equal(torch.get_rng_state(), stream)
