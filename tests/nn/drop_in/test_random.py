"""Random networks out of what people write: converted, compared, reverted, compared again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from torch import nn

import fastgan
from fastgan.benchmarks import drop_in_models
from fastgan.nn.drop_in import converted

here = drop_in_models.load(Path(__file__).with_name("pairs.py"))
written = drop_in_models.load(Path(__file__).with_name("sources.py"))
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
CHECKS = settings(suppress_health_check=[*HealthCheck])
FEWER = settings(CHECKS, max_examples=settings().max_examples // 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with fastgan.backend("triton"):
        yield request.param


def kind_of(folder: Path, source: str) -> type[nn.Module]:
    """The class from a file of its own: whoever asks for its source finds it."""
    path = folder / f"net{hashlib.sha256(source.encode()).hexdigest()[:16]}.py"
    path.write_text(source, encoding="utf-8")
    note(source)
    found: type[nn.Module] = drop_in_models.load(path).Net
    return found


def results(net: nn.Module, x: torch.Tensor, training: bool) -> dict:
    return here.pass_over(net.train(training), here.to([x], x.dtype))


@CHECKS
@given(drawn=written.sources())
def test_any_network(folder: Path, drawn: tuple[str, tuple[int, ...]]) -> None:
    source, shape = drawn
    kind = kind_of(folder, source)
    theirs, mine, _ = here.twins(kind)
    (x,) = here.drawn((3, *shape))
    for round in range(3):
        if round == 2:
            fastgan.revert(mine)
        for training in (True, False):
            try:
                wanted = results(theirs, x, training)
            except (RuntimeError, ValueError):  # an activation in place of what backward needs: nobody's network
                assume(False)
            with mock.patch.object(converted, "always", True):  # what would run on a GPU, one layer after another
                here.same(results(mine, x, training), wanted, 1e-9)
            here.same_state(mine, theirs, 1e-9)
            assert type(getattr(mine, "seen", None)) is type(getattr(theirs, "seen", None))


@FEWER
@given(drawn=written.sources(6))
def test_any_network_on_the_kernels(device: str, folder: Path, drawn: tuple[str, tuple[int, ...]]) -> None:
    source, shape = drawn
    kind = kind_of(
        folder, source.replace("Dropout(0.3)", "Dropout(0.0)").replace("F.dropout(x, 0.3", "F.dropout(x, 0.0")
    )
    (x,) = (tensor.to(device) for tensor in here.drawn((3, *shape)))
    found = []
    for dtype in (torch.float64, torch.float32, torch.float32):
        torch.manual_seed(0)
        net = here.lively(kind()).to(device, dtype)
        if len(found) == 2:
            fastgan.convert(net)
        try:
            found.append(results(net, x.to(dtype), True))
        except (RuntimeError, ValueError):
            assume(len(found) == 2)
            raise
    here.near(*found, tolerance=1e-3)
