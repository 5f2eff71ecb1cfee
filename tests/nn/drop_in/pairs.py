"""What the tests of drop-in conversion share: a network and its converted twin, and how near each other they are."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

import fastgan
from fastgan.benchmarks.drop_in_models import Style
from fastgan.benchmarks.drop_in_objectives import step


def twins(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Any]:
    """Build twice from one seed and convert the second: theirs, mine, the report."""
    built = []
    for _ in range(2):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            built.append(lively(build()).to(dtype))
    return *built, fastgan.convert(built[1])


def lively(network: nn.Module) -> nn.Module:
    """Move scales, shifts and statistics of norms away from 1 and 0, where their mistakes would not show."""
    for module in network.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.InstanceNorm2d)):
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data.uniform_(0.5, 1.5) if name in ("weight", "running_var") else tensor.data.normal_(0, 0.3)
    return network


def drawn(*sizes: Sequence[int], dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, ...]:
    """Draw tensors of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tuple(size), generator=generator, dtype=torch.float64).to(dtype) for size in sizes)


def to(inputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return copies in a dtype that want gradients; whole numbers stay what they are."""
    return tuple(
        t.detach().to(dtype, copy=True).requires_grad_() if t.is_floating_point() else t.clone() for t in inputs
    )


def pass_over(network: nn.Module, inputs: Sequence[Tensor], second: bool = False) -> dict[str, list[Tensor | None]]:
    """Run forward and backward, and a penalty on the input's gradient where asked; return all that came of it.

    Inputs are copied on their way in, so that a network may write into what it was given; what it left there counts.
    """
    torch.manual_seed(3)  # dropout
    given = [t * 1 if t.is_floating_point() else t for t in inputs]
    outputs = [t for t in tree_leaves(network(*given)) if isinstance(t, Tensor)]
    found: dict[str, list[Tensor | None]] = {"outputs": [*outputs], "inputs": [*given]}
    wanted = [t for t in (*inputs, *network.parameters()) if t.requires_grad]
    mixed = [drawn(o.shape, seed=5 + at)[0].to(o) for at, o in enumerate(outputs) if o.requires_grad]
    total = sum(((o * m).sum() for o, m in zip((o for o in outputs if o.requires_grad), mixed, strict=True)), start=0.0)
    found["gradients"] = gradients(total, wanted, second)
    if second:
        floats = [t for t in inputs if t.requires_grad]
        squares = [g.square().sum() for g in found["gradients"][: len(floats)] if g is not None and g.requires_grad]
        if squares:
            found["second gradients"] = gradients(sum(squares[1:], squares[0]), wanted, False)
    found["buffers"] = [*network.buffers()]
    return tree_map_only(Tensor, lambda t: t.detach().clone(), found)


def gradients(total: Any, wanted: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
    """Return gradients, None where a tensor was not used."""
    return [*torch.autograd.grad(total, wanted, create_graph=create_graph, allow_unused=True)]


def distances(mine: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield for each group of tensors its name, the largest difference, and the largest value."""
    assert mine.keys() == theirs.keys()
    for name, wanted in theirs.items():
        got = mine[name]
        assert [t is None for t in got] == [t is None for t in wanted] or name == "second gradients", name
        zeroes = [torch.zeros(()) if t is None else t for t in wanted]
        ours = [torch.zeros(()) if t is None else t for t in got]
        for a, b in zip(ours, zeroes, strict=True):
            assert a.shape == b.shape or not (a.dim() and b.dim()), (name, a.shape, b.shape)
        differences = [
            float((a.double() - b.double()).abs().max()) for a, b in zip(ours, zeroes, strict=True) if b.numel()
        ]
        values = [float(b.double().abs().max()) for b in zeroes if b.numel()]
        yield name, max(differences, default=0.0), max(values, default=0.0)


def same(mine: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> None:
    """As near as that, relative to the largest of each group: a bias in front of a norm has a true gradient of 0."""
    for name, distance, scale in distances(mine, theirs):
        assert distance <= tolerance * max(scale, 1e-3), f"{name}: off by {distance:.2e} where values reach {scale:.2e}"


def near(exact: dict[str, Any], plain: dict[str, Any], mine: dict[str, Any], tolerance: float = 1e-4) -> None:
    """As near as that to results in fp64, or four times as far from them as plain PyTorch in the same precision."""
    errors = {name: distance for name, distance, _ in distances(plain, exact)}
    for name, distance, scale in distances(mine, exact):
        bound = max(tolerance * max(scale, 1e-3), 4 * errors[name])
        assert distance <= bound, f"{name}: off by {distance:.2e}, allowed are {bound:.2e}"


def same_state(mine: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    """The same keys in the same order, and values as near as that."""
    own, other = mine.state_dict(), theirs.state_dict()
    assert list(own) == list(other)
    scale = max((float(t.double().abs().max()) for t in other.values() if t.numel()), default=0.0)
    for name, value in other.items():
        torch.testing.assert_close(
            own[name].double(), value.double(), rtol=0, atol=tolerance * max(scale, 1e-3), msg=name
        )


def trained(
    style: Style, dtype: torch.dtype, steps: int, convert: bool, device: str = "cpu"
) -> tuple[Tensor, dict[str, nn.Module]]:
    """Train a pair, converted or not; return losses (steps, players) and networks.

    The optimisers are older than the conversion, and their eps keeps noise from being blown up to steps.
    """
    torch.manual_seed(0)
    pair = style.networks()
    networks = {letter: lively(net).to(device, dtype) for letter, net in pair.named().items()}
    adam = functools.partial(torch.optim.Adam, lr=style.rate, betas=style.betas, eps=1e-2)
    optimizers = {letter: adam(net.parameters()) for letter, net in networks.items()}
    if convert:
        for net in networks.values():
            fastgan.convert(net)
    generator, losses = torch.Generator().manual_seed(4), []
    for _ in range(steps):
        drawn = style.draw(4, generator)
        batch = {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in drawn.items()}
        losses.append(step(style.objective, pair.generator, pair.discriminator, optimizers, batch))
    return torch.stack(losses), networks
