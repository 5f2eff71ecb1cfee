"""Conditional norms in a traced forward: a norm without vectors of its own, times a scale, plus a shift."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fastgan.nn.chain_members import INSTANCE_NORMS, NORMS, kind_of, plain
from fastgan.nn.conditional_batch_norm import conditioned
from fastgan.nn.drop_in.members import at
from fastgan.nn.drop_in.stretches import PASSED_BY, changes
from fastgan.ops.instance_norm_act import instance_norm_act

PRODUCTS = (operator.mul, torch.mul)
SUMS = (operator.add, torch.add)


class Conditional(NamedTuple):
    """A norm, and the product and the sum behind it, each the only reader of the one before."""

    norm: fx.Node
    product: fx.Node
    total: fx.Node

    @property
    def path(self) -> str:
        """Where the norm is."""
        return str(self.norm.target)

    @property
    def operands(self) -> tuple[Any, Any, Any]:
        """What the norm takes, the scale and the shift."""
        scale, shift = _other(self.product, self.norm), _other(self.total, self.product)
        return self.norm.args[0], scale, shift


def conditionals(graph: fx.Graph, module: nn.Module) -> Iterator[Conditional]:
    """Yield the conditional norms of a forward method; what is between their parts changes nothing."""
    order = [node for node in graph.nodes if node.op not in PASSED_BY]
    place = {node: number for number, node in enumerate(order)}
    for norm in order:
        if norm.op != "call_module" or not _bare(module.get_submodule(str(norm.target))) or len(norm.args) != 1:
            continue
        product = _behind(norm, PRODUCTS)
        total = None if product is None else _behind(product, SUMS)
        if product is None or total is None:
            continue
        if not any(changes(node, module) for node in order[place[norm] : place[total]]):
            yield Conditional(norm, product, total)


def runner(found: Conditional, number: int) -> Callable[..., Tensor]:
    """Return what runs in its place."""
    path, flipped, ahead = found.path, found.product.args[0] is found.norm, found.total.args[0] is found.product

    def run(owner: nn.Module, input: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        norm: Any = at(owner, path)
        shape = (*input.shape[:2], *(1 for _ in input.shape[2:]))
        if _bare(norm) and all(t.shape == shape and t.dtype == input.dtype for t in (scale, shift)):
            rows = scale.flatten(1), shift.flatten(1)
            if kind_of(norm) in INSTANCE_NORMS:
                norm._check_input_dim(input)
                return instance_norm_act(input, None, None, *rows, eps=norm.eps, activation="none")
            return conditioned(norm, input, *rows)
        output = norm(input)
        output = output * scale if flipped else scale * output
        return output + shift if ahead else shift + output

    run.__name__ = run.__qualname__ = f"conditional_{number}"
    return run


def _bare(norm: nn.Module) -> bool:
    """Whether a module is a norm of torch's without scale and shift; by instances, without running statistics too."""
    kind: Any = kind_of(norm)
    if kind not in NORMS or not kind.__module__.startswith("torch.") or not plain(norm):
        return False
    told: Any = norm
    return told.weight is None and told.bias is None and not (kind in INSTANCE_NORMS and told.track_running_stats)


def _behind(node: fx.Node, functions: tuple[Any, ...]) -> fx.Node | None:
    """Return the only reader of a node, if it is one of these functions, of this node and another."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    fits = reader.op == "call_function" and reader.target in functions and len(reader.args) == 2 and not reader.kwargs
    return reader if fits and isinstance(_other(reader, node), fx.Node) else None


def _other(reader: fx.Node, node: fx.Node) -> Any:
    return next((arg for arg in reader.args if arg is not node), None)
