"""What a conversion keeps: parameters, state, paths, classes, copies, and the way back."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn.drop_in import converted

Twins = Callable[[nn.Module], tuple[nn.Module, nn.Module]]
Alike = Callable[..., None]
pytestmark = pytest.mark.usefixtures("programs")


class Block(nn.Module):
    """A residual block as people write it."""

    made: ClassVar[Counter[str]] = Counter()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.slope = 0.1

    def __init_subclass__(cls) -> None:
        Block.made[cls.__name__] += 1

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.norm1(self.conv1(x)), self.slope)
        return x + torch.tanh(self.conv2(h))


class Net(nn.Module):
    """Sequential parts, a list of blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(0.2, inplace=True))
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 5), nn.BatchNorm1d(5, 0.8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def state(module: nn.Module) -> list[tuple[str, int]]:
    return [(name, value.data_ptr()) for name, value in module.state_dict().items()]


def test_parameters_and_state_stay_the_same_objects(image: Tensor) -> None:
    net = Net().double()
    net.blocks[1].conv2.weight.requires_grad_(False)
    before = state(net), list(net.parameters()), [name for name, _ in net.named_modules()]
    fastgan.convert(net)
    assert state(net) == before[0]
    assert all(one is other for one, other in zip(net.parameters(), before[1], strict=True))
    assert [name for name, _ in net.named_modules()] == before[2]
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["blocks.1.conv2.weight"]


def test_classes_are_still_what_they_were(image: Tensor) -> None:
    net = Net()
    shown, names = repr(net), [type(m).__name__ for m in net.modules()]
    Block.made.clear()
    fastgan.convert(net)
    assert repr(net) == shown
    assert [type(m).__name__ for m in net.modules()] == names
    assert (
        isinstance(net.blocks[0], Block) and isinstance(net.stem, nn.Sequential) and isinstance(net.stem[0], nn.Conv2d)
    )
    assert not Block.made, "a registry of subclasses heard of ours"
    assert not isinstance(Net(), converted.Converted), "only this instance is converted"


def test_an_optimiser_made_before_goes_on(twins: Twins, image: Tensor) -> None:
    ours, theirs = twins(Net())
    steps = [torch.optim.Adam(net.parameters(), 1e-2) for net in (ours, theirs)]
    fastgan.convert(ours)
    for _ in range(3):
        for net, optimizer in zip((ours, theirs), steps, strict=True):
            optimizer.zero_grad()
            net(image).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_results_in_both_modes(twins: Twins, alike: Alike, image: Tensor, training: bool) -> None:
    ours, theirs = twins(Net())
    fastgan.convert(ours)
    assert ours.training
    alike(ours.train(training), theirs.train(training), image)
    assert all(m.training == training for m in ours.modules())


def test_state_loads_either_way(image: Tensor, alike: Alike) -> None:
    ours, theirs = Net().double(), Net().double()
    fastgan.convert(ours)
    ours.load_state_dict(theirs.state_dict())
    alike(ours, theirs, image)
    fresh = Net().double()
    fresh.load_state_dict(ours.state_dict())
    alike(fresh, theirs.train(), image)


def test_initialisers_by_class_name_reach_every_layer() -> None:
    net = Net()
    fastgan.convert(net)
    found = Counter(
        name for m in net.modules() for name in ("Conv", "BatchNorm", "Linear") if type(m).__name__.find(name) != -1
    )
    assert found == {"Conv": 5, "BatchNorm": 3, "Linear": 1}


def test_copies_and_pickles_stay_converted(twins: Twins, alike: Alike, image: Tensor) -> None:
    ours, theirs = twins(Net())
    fastgan.convert(ours)
    kinds = [isinstance(m, converted.Converted) for m in ours.modules()]
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    unpickled = pickle.loads(pickle.dumps(ours))  # noqa: S301 -- of our own making
    for copied in (copy.deepcopy(ours), unpickled, torch.load(file, weights_only=False)):
        assert [isinstance(m, converted.Converted) for m in copied.modules()] == kinds
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in ours.parameters()}
        alike(copied, copy.deepcopy(theirs), image)


def test_a_layer_replaced_afterwards_is_the_one_that_runs(twins: Twins, alike: Alike, image: Tensor) -> None:
    ours, theirs = twins(Net())
    fastgan.convert(ours)
    fresh = nn.Conv2d(4, 4, 5, padding=2).double(), nn.LeakyReLU(0.7), nn.GELU()
    for net in (ours, theirs):
        net.blocks[0].conv1, net.stem[1], net.head[3] = (copy.deepcopy(m) for m in fresh)
        net.blocks[1].norm1 = nn.Identity()
    alike(ours, theirs, image)


def test_values_and_lists_that_change_afterwards_count(twins: Twins, alike: Alike, image: Tensor) -> None:
    ours, theirs = twins(Net())
    fastgan.convert(ours)
    ours(image), theirs(image)
    extra = Block(4).double()
    for net in (ours, theirs):
        net.blocks[1].slope = 0.9
        net.blocks.append(copy.deepcopy(extra))
        net.stem.append(nn.Tanh())
    alike(ours, theirs, image)


def test_hooks_added_later_are_called(twins: Twins, alike: Alike, image: Tensor) -> None:
    ours, theirs = twins(Net())
    fastgan.convert(ours)
    seen: dict[int, list[str]] = {id(ours): [], id(theirs): []}
    for net in (ours, theirs):
        own = seen[id(net)]
        net.blocks[0].norm1.register_forward_hook(lambda m, a, out, own=own: own.append("norm") or out * 2)
        net.stem[0].register_forward_pre_hook(lambda m, a, own=own: own.append("stem"))
        net.head.register_forward_hook(lambda m, a, out, own=own: own.append("head"))
        net.blocks[1].conv1.register_full_backward_hook(lambda m, gi, go, own=own: own.append("back"))
    alike(ours, theirs, image)
    assert seen[id(ours)] == seen[id(theirs)] == ["stem", "norm", "head", "back"]


def test_twice_changes_nothing_and_revert_gives_back_all(twins: Twins, alike: Alike, image: Tensor) -> None:
    ours, theirs = twins(Net())
    kinds, kept = [type(m) for m in ours.modules()], [set(vars(m)) for m in ours.modules()]
    first = fastgan.convert(ours)
    classes = [type(m) for m in ours.modules()]
    second = fastgan.convert(ours)
    assert [type(m) for m in ours.modules()] == classes
    assert (first.replaced, first.kept, str(first)) == (second.replaced, second.kept, str(second))
    fastgan.revert(ours)
    assert [type(m) for m in ours.modules()] == kinds
    assert [set(vars(m)) for m in ours.modules()] == kept
    alike(ours, theirs, image)
    fastgan.revert(ours)


def test_channels_last_lays_out_weights_and_revert_takes_it_back() -> None:
    net = Net()
    weight = net.blocks[0].conv1.weight
    fastgan.convert(net, channels_last=True)
    assert net.blocks[0].conv1.weight is weight and weight.is_contiguous(memory_format=torch.channels_last)
    fastgan.revert(net)
    assert weight.is_contiguous()


def test_half_and_back(twins: Twins, alike: Alike, image: Tensor) -> None:
    ours, theirs = twins(Net())
    fastgan.convert(ours)
    assert {p.dtype for p in ours.half().parameters()} == {torch.float16}
    theirs.half()
    alike(ours.double(), theirs.double(), image)


def test_the_report_names_what_goes_together_and_what_does_not() -> None:
    report = fastgan.convert(Net())
    told = {entry.path: entry.what for entry in report.replaced}
    assert told == {
        "stem.0": "Conv2d + LeakyReLU(0.2)",
        "head.1": "Linear + BatchNorm1d + ReLU",
        "blocks.0.conv1": "Conv2d + BatchNorm2d + LeakyReLU(0.1), Conv2d + Tanh",
        "blocks.1.conv1": "Conv2d + BatchNorm2d + LeakyReLU(0.1), Conv2d + Tanh",
    }
    assert [(entry.path, entry.what) for entry in report.kept] == []
    assert "replaced: 4" in str(report) and "found in a forward" in str(report)


def test_covered_counts_flops_and_leaves_the_model_as_it_was(image: Tensor) -> None:
    net = Net().double()
    report = fastgan.convert(net)
    before = copy.deepcopy(net.state_dict())
    assert report.covered(image) == 1.0
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2))
    assert fastgan.convert(grouped).covered(torch.randn(1, 4, 5, 5)) == pytest.approx(2 / 3)
    assert fastgan.convert(nn.Sequential(nn.ReLU())).covered(torch.randn(1, 4)) == 0.0


def test_what_cannot_be_improved_is_left_untouched() -> None:
    for module in (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), nn.LSTM(3, 4), nn.ReLU(), nn.MultiheadAttention(4, 2)):
        kinds = [type(m) for m in module.modules()]
        report = fastgan.convert(module)
        if not report.replaced:
            assert [type(m) for m in module.modules()] == kinds
    assert "nothing here" in str(fastgan.convert(nn.GELU()))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"takes a torch.nn.Module, not Tensor"):
        fastgan.convert(torch.ones(2))
    with pytest.raises(UserError, match="not the class Net"):
        fastgan.convert(Net)
    with pytest.raises(UserError, match=r"convert it first, then torch.compile"):
        fastgan.convert(torch.compile(Net()))
    with pytest.raises(UserError, match=r"convert it before torch.jit"):
        fastgan.convert(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)))
    net = Net()
    net.compile()
    with pytest.raises(UserError, match=r"then model.compile"):
        fastgan.convert(net)
    with pytest.raises(UserError, match=r"revert takes a torch.nn.Module, not int"):
        fastgan.revert(3)
