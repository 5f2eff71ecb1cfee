"""Several small networks of one form as one: their weights lie in stacks, the members first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.models.mlp import MLPDiscriminator, MLPGenerator
from fastgan.nn import BatchNorm1dActStack, LinearAct, LinearActStack, Maxout, MaxoutStack

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


class Stack(nn.Module):
    """Fully connected networks of one form: (members, n, ...) -> (members, n, ...), each member by its own weights.

    ``parameters()`` are the stacks. Those of ``networks`` become views of them: a network computes with, and saves,
    what the stack has, and an optimiser of its own moves its slice. A buffer that the stack moves is seen likewise.

    Args:
        networks: ``fastgan.models.mlp``'s generators or discriminators, alike but for their values.

    Raises:
        UserError: for networks of another family, or of different forms.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = len(networks)
        self._shape = _sample_shape(networks)
        chains = [list(network.layers) for network in networks]  # type: ignore[arg-type]
        if len({len(chain) for chain in chains}) > 1:
            raise UserError("networks of one depth can be stacked")
        self.layers = nn.ModuleList(_stacked(list(zip(*chains, strict=True))))
        self._shared = list(_share(self, networks))

    def forward(self, input: Tensor) -> Tensor:
        """Map each member's batch by that member's network; a discriminator's logits are (members, n)."""
        output = input.flatten(2)
        for layer in self.layers:
            output = layer(output)
        return output.squeeze(2) if self._shape is None else output.unflatten(2, self._shape)

    def shared(self) -> list[tuple[nn.Parameter, list[nn.Parameter]]]:
        """Each parameter of the stack with the members' parameters that are its slices."""
        return self._shared


def _sample_shape(networks: Sequence[nn.Module]) -> tuple[int, ...] | None:
    """Return the shape of a generator's samples; None for discriminators."""
    kinds = {type(network) for network in networks}
    if kinds == {MLPDiscriminator}:
        return None
    shapes = {network.sample_shape for network in networks if isinstance(network, MLPGenerator)}
    if kinds != {MLPGenerator} or len(shapes) != 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"networks of the family mlp can be stacked, of one form, not {names}")
    return shapes.pop()


def _stacked(layers: Sequence[tuple[nn.Module, ...]]) -> Iterator[nn.Module]:
    """Yield the stack of each layer; an activation behind a norm goes into the norm's."""
    rest = list(layers)
    while rest:
        alike = rest.pop(0)
        first = alike[0]
        if isinstance(first, LinearAct):
            yield LinearActStack.of(alike)  # type: ignore[arg-type]
        elif isinstance(first, Maxout):
            yield MaxoutStack(alike)  # type: ignore[arg-type]
        elif isinstance(first, nn.BatchNorm1d):
            follows = rest[0][0] if rest else None
            name = ACTIVATIONS.get(type(follows), "") if follows is not None else ""
            if name:
                rest.pop(0)
            slope = float(getattr(follows, "negative_slope", 0.0))
            yield BatchNorm1dActStack(alike, name or "none", slope)  # type: ignore[arg-type]
        elif type(first) in ACTIVATIONS:
            yield first
        else:
            raise UserError(f"a layer of the kind {type(first).__name__} cannot be stacked")


def _share(stack: nn.Module, networks: Sequence[nn.Module]) -> Iterator[tuple[nn.Parameter, list[nn.Parameter]]]:
    """Have the networks' parameters and buffers be views of the stack's, and yield the parameters."""
    yield from _views(stack, networks, nn.Module.parameters)  # type: ignore[misc]
    for _ in _views(stack, networks, nn.Module.buffers):
        pass


def _views(
    stack: nn.Module, networks: Sequence[nn.Module], tensors: Callable[[nn.Module], Iterator[Tensor]]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    own = zip(*(tensors(network) for network in networks), strict=True)
    for whole, parts in zip(tensors(stack), own, strict=True):
        assert all(part.shape == whole.shape[1:] for part in parts)
        with torch.no_grad():
            for part, view in zip(parts, whole.detach().unbind(), strict=True):
                part.data = view
        yield whole, list(parts)
