"""Models that people wrote, converted: nothing about them changes, by any number that a training sees."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.benchmarks import drop_in_models
from fastgan.benchmarks.drop_in_models import STYLES, Style
from fastgan.benchmarks.drop_in_objectives import step
from fastgan.train.capture import strict

here = drop_in_models.load(Path(__file__).with_name("pairs.py"))
pytestmark = pytest.mark.usefixtures("programs")

NAMED = {style.name: style for style in STYLES}
BOTH = [
    (name, letter) for name, style in NAMED.items() for letter in ("G", "D") if name != "stylegan2" or letter == "D"
]
PENALISED = {("ctgan", "D"), ("stylegan2", "D"), ("mlp", "D"), ("dcgan", "D"), ("sngan", "D"), ("mlp", "G")}
BY_HOOKS = {"hifigan", "sngan"}  # whose weights are no leaves: PyTorch itself cannot copy them after a forward pass
PARAMETRIZED = {"hifigan-parametrized", "sngan-conditional"}  # which PyTorch does not pickle
ROWS = 4
WORDS = ("Conv", "BatchNorm", "InstanceNorm", "Linear", "Sequential")  # by which people choose what to initialise


def network(style: Style, letter: str) -> nn.Module:
    return style.networks().named()[letter]


def inputs_of(style: Style, letter: str, n: int = ROWS) -> tuple[Tensor, ...]:
    return style.inputs(letter, style.draw(n, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("name, letter", BOTH)
def test_a_pass_is_the_same(name: str, letter: str) -> None:
    """Outputs, gradients, second ones where somebody penalises them, running statistics; in training and after it."""
    style = NAMED[name]
    theirs, mine, report = here.twins(lambda: network(style, letter))
    assert report.replaced
    for training in (True, False):
        theirs.train(training), mine.train(training)
        results = [
            here.pass_over(net, here.to(inputs_of(style, letter), torch.float64), (name, letter) in PENALISED)
            for net in (theirs, mine)
        ]
        here.same(results[1], results[0], 1e-10)
    here.same_state(mine, theirs, 1e-10)


LATER = [pytest.mark.full]  # their sisters with hooks say the same
TRAININGS = [
    *(pytest.param(n, torch.float64, 1e-10, id=f"{n}-fp64", marks=LATER if n in PARAMETRIZED else []) for n in NAMED),
    pytest.param("mlp", torch.float32, 1e-4, id="mlp-fp32"),
    *(pytest.param(n, torch.float32, 1e-4, id=f"{n}-fp32", marks=LATER) for n in [*NAMED][1:]),
]


@pytest.mark.parametrize("name, dtype, tolerance", TRAININGS)
def test_ten_steps_are_the_same(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Those to convert are it after their optimisers were built, as people may."""
    (wanted, theirs), (losses, mine) = (here.trained(NAMED[name], dtype, 10, convert) for convert in (False, True))
    torch.testing.assert_close(losses, wanted, rtol=tolerance, atol=tolerance)
    for letter, net in theirs.items():
        here.same_state(mine[letter], net, tolerance)


CAPTURED = [pytest.param(n, marks=[] if n in ("ctgan", "hifigan", "sngan") else [pytest.mark.full]) for n in NAMED]


@pytest.mark.parametrize("name", CAPTURED)
def test_a_step_can_be_captured(name: str) -> None:
    """Whatever a CUDA graph forbids is forbidden here; hooks and parametrizations move buffers under it as well."""
    style = NAMED[name]
    pair = style.networks()
    networks = pair.named()
    rate = torch.tensor(style.rate)
    optimizers = {letter: torch.optim.Adam(net.parameters(), rate) for letter, net in networks.items()}
    for net in networks.values():
        fastgan.convert(net)

    def train(batch: dict[str, Tensor]) -> Tensor:
        return step(style.objective, pair.generator, pair.discriminator, optimizers, batch)

    with strict():
        captured = fastgan.capture(train, state=[*networks.values(), *optimizers.values()], warmup=2)
        losses = [captured(style.draw(ROWS, torch.Generator().manual_seed(seed))) for seed in range(2)]
    assert all(bool(loss.isfinite().all()) for loss in losses)


def written(member: Any) -> Any:
    """The class that somebody wrote, beneath the one that torch makes for a single parametrized instance."""
    kind = type(member)
    return kind.__bases__[0] if kind.__name__.startswith("Parametrized") else kind


@pytest.mark.parametrize("name, letter", BOTH)
def test_to_everyone_else_it_is_what_it_was(name: str, letter: str) -> None:
    """Paths, classes by name and by isinstance, state_dict both ways, copies, pickles; and the way back."""
    style = NAMED[name]
    theirs, mine = (here.lively(seeded(style, letter)).eval() for _ in range(2))
    kinds, parameters = [written(member) for member in mine.modules()], dict(mine.named_parameters())
    first, again = fastgan.convert(mine), fastgan.convert(mine)
    assert first.replaced and (first.replaced, first.kept) == (again.replaced, again.kept)
    assert [path for path, _ in mine.named_modules()] == [path for path, _ in theirs.named_modules()]
    for member, kind in zip(mine.modules(), kinds, strict=True):
        assert isinstance(member, kind) and [word in type(member).__name__ for word in WORDS] == [
            word in kind.__name__ for word in WORDS
        ]
    theirs.load_state_dict(mine.state_dict())
    mine.load_state_dict(theirs.state_dict())
    copies = [mine]
    if name not in BY_HOOKS:
        copies.append(copy.deepcopy(mine))
    if name not in PARAMETRIZED:
        copies.append(pickle.loads(pickle.dumps(mine)))  # noqa: S301 -- our own bytes
    x = inputs_of(style, letter)
    wanted = here.pass_over(theirs, here.to(x, torch.float32))
    for twin in copies:
        here.same(here.pass_over(twin, here.to(x, torch.float32)), wanted, 1e-5)
        assert twin is mine or not set(map(id, twin.parameters())) & set(map(id, mine.parameters()))
    fastgan.revert(mine)
    assert [written(member) for member in mine.modules()] == kinds
    assert all(mine.get_parameter(path) is parameter for path, parameter in parameters.items())
    here.same(here.pass_over(mine, here.to(x, torch.float32)), wanted, 1e-6)


def seeded(style: Style, letter: str) -> nn.Module:
    torch.manual_seed(0)
    return network(style, letter)
