"""Where in a traced forward method layers stand that one function can take: stretches of nodes, each read by the next.

A stretch is made of nodes that follow one another in the graph, each the only reader of the one before: modules that
a Chain would fuse, and the functional activations, dropout and up-samplings that people write instead.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fastgan import ops
from fastgan.nn.chain_members import Fused, overwrites, plan
from fastgan.nn.drop_in.members import Step, members_of

PASSED_BY = ("placeholder", "get_attr")
VIEWS = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "transpose", "permute", "chunk", "split", "contiguous",
         "t", "getitem"}  # fmt: skip
ALIASES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)
PRODUCTS = {
    F.linear: ops.linear_act,
    F.conv1d: ops.conv1d_act,
    F.conv2d: ops.conv2d_act,
    F.conv_transpose1d: ops.conv_transpose1d_act,
    F.conv_transpose2d: ops.conv_transpose2d_act,
}


@dataclass
class Stretch:
    """Nodes that one function takes, and the members that they are."""

    nodes: list[fx.Node]
    steps: list[Step] = field(default_factory=list)
    fused: list[Fused] = field(default_factory=list)


@dataclass
class Product:
    """A functional product and the activation behind it."""

    nodes: list[fx.Node]
    activation: str
    slope: float


def stretches(graph: fx.Graph, module: nn.Module, escapes: bool) -> Iterator[Stretch | Product]:
    """Yield the stretches of a forward method; ``escapes``: its result may be changed in place by who called it."""
    opaque: set[fx.Node] = set()
    order = [node for node in graph.nodes if node.op not in PASSED_BY]
    at = 0
    while at < len(order):
        if order[at].target in PRODUCTS and order[at].op == "call_function":
            product = _product(order, at, module, escapes)
            yield product
            at += len(product.nodes)
            continue
        line = _line(order, at, module, opaque)
        if not line:
            at += 1
            continue
        found, torn = _cut(line, module)
        if torn:
            opaque |= torn
            continue
        for stretch in found:
            _settle(stretch, module, escapes)
            _begin(stretch, module, escapes)
            if stretch.fused:
                yield stretch
        at += len(line)


def step_of(node: fx.Node, module: nn.Module) -> Step | None:
    """Return what a node is to a chain: a module's path, a module that does the same, or None."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if any(isinstance(value, fx.Node) for value in [*node.args[1:], *node.kwargs.values()]):
        return None
    if node.op == "call_module":
        return str(node.target) if len(node.args) == 1 and not node.kwargs else None
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    home = "torch" if node.op == "call_method" else getattr(node.target, "__module__", "") or "torch"
    maker = _MAKERS.get(str(name)) if home.partition(".")[0] in ("torch", "fastgan") else None
    try:
        return None if maker is None else maker(*node.args[1:], **node.kwargs)
    except TypeError:
        return None


def mutated(node: fx.Node, module: nn.Module, escapes: bool = False, but: fx.Node | None = None) -> bool:
    """Whether a node's value, or a view of it, may be changed in place by its readers, ``but`` one."""
    for user in node.users:
        if user is but:
            continue
        if user.op == "output":
            if escapes:
                return True
        elif user.op == "call_module":
            callee = module.get_submodule(str(user.target))
            if any(map(overwrites, callee.modules())):
                return True
            if isinstance(callee, ALIASES) and mutated(user, module, escapes):
                return True
        elif (user.args and user.args[0] is node and _in_place(user)) or (
            _looks(user) and mutated(user, module, escapes)
        ):
            return True
    return False


def _line(order: list[fx.Node], at: int, module: nn.Module, opaque: set[fx.Node]) -> list[tuple[fx.Node, Step]]:
    """Return the nodes from ``at`` on of which each is the only reader of the one before it, and right behind it."""
    line: list[tuple[fx.Node, Step]] = []
    for node in order[at:]:
        step = None if node in opaque else step_of(node, module)
        if step is None or (line and (node.args[0] is not line[-1][0] or len(line[-1][0].users) > 1)):
            break
        line.append((node, step))
    return line


def _cut(line: list[tuple[fx.Node, Step]], module: nn.Module) -> tuple[list[Stretch], set[fx.Node]]:
    """Cut a line into what goes together; or return the nodes whose members do not stay together."""
    owners: list[tuple[nn.Module, fx.Node]] = []
    for node, step in line:
        inner = members_of([step], module)
        owners += [(member, node) for member in inner]
        if not inner:
            return [], {node}
    queue, found, steps = iter(owners), list[Stretch](), dict(line)
    taken: dict[fx.Node, int] = {}
    for number, run in enumerate(plan([member for member, _ in owners])):
        count = 1 if isinstance(run, nn.Module) else sum(len(fused.members) for fused in run)
        nodes = list(dict.fromkeys(node for _, node in (next(queue) for _ in range(count))))
        torn = {node for node in nodes if taken.setdefault(node, number) != number}
        if torn:
            return [], torn
        if not isinstance(run, nn.Module):
            found.append(Stretch(nodes, [steps[node] for node in nodes], run))
    return found, set()


def _settle(stretch: Stretch, module: nn.Module, escapes: bool) -> None:
    """Leave out the end of a stretch whose result is changed in place, where it would be wanted for backward."""
    while stretch.nodes and stretch.fused:
        if not stretch.fused[-1].keeps_result or not mutated(stretch.nodes[-1], module, escapes):
            return
        _shorten(stretch, -1, module)


def _begin(stretch: Stretch, module: nn.Module, escapes: bool) -> None:
    """Leave out an activation at the start whose input is changed in place, where torch.nn's would not want it."""
    if not stretch.fused or not stretch.fused[0].wants_input:
        return
    source: Any = stretch.nodes[0].args[0]
    while _looks(source):
        source = source.args[0]
    if mutated(source, module, but=stretch.nodes[0]) or (escapes and source.op == "placeholder"):
        _shorten(stretch, 0, module)


def _shorten(stretch: Stretch, end: int, module: nn.Module) -> None:
    """Take a node off one end."""
    stretch.nodes.pop(end)
    stretch.steps.pop(end)
    runs = [run for run in plan(members_of(stretch.steps, module)) if not isinstance(run, nn.Module)]
    stretch.fused = runs[0] if runs else []


def _product(order: list[fx.Node], at: int, module: nn.Module, escapes: bool) -> Product:
    node = order[at]
    behind = order[at + 1] if at + 1 < len(order) else None
    if behind is not None and len(node.users) == 1 and behind.args and behind.args[0] is node:
        step = step_of(behind, module)
        member = None if isinstance(step, str) else step  # a module may be replaced, and listened to
        name, slope = activation_of(member)
        unsafe = name == "leaky_relu" and not getattr(member, "inplace", False) and mutated(behind, module, escapes)
        if name != "none" and not unsafe:
            return Product([node, behind], name, slope)
    return Product([node], "none", 0.0)


def activation_of(member: nn.Module | None) -> tuple[str, float]:
    """Return the name and slope of an activation that goes into an epilogue; ``none`` for anything else."""
    from fastgan.nn.chain_members import _take_activation

    return _take_activation([] if member is None else [member])


def changes(node: fx.Node, module: nn.Module) -> bool:
    """Whether a node may change a tensor in place."""
    if node.op == "call_module":
        return any(map(overwrites, module.get_submodule(str(node.target)).modules()))
    return _in_place(node)


def _in_place(node: fx.Node) -> bool:
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    if getattr(node.target, "__module__", "") == "_operator":
        return name == "setitem" or (name[0] == "i" and hasattr(operator, name[1:]))
    functional = getattr(node.target, "__module__", "") == F.__name__
    told = functional and any(value is True for value in node.args[1:])  # it may be the one that says so
    return told or (name.endswith("_") and not name.startswith("_"))


def _looks(node: fx.Node) -> bool:
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name in VIEWS


def _leaky(negative_slope: float = 0.01, inplace: bool = False) -> nn.Module:
    return nn.LeakyReLU(negative_slope, inplace)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module | None:
    return nn.Dropout(p, inplace).train(training)


def _enlarged(size: Any = None, scale_factor: Any = None, mode: str = "nearest", *more: Any, **told: Any) -> Any:
    plain = size is None and mode == "nearest" and not any((*more, *told.values()))
    return nn.Upsample(scale_factor=scale_factor, mode="nearest") if plain and scale_factor else None


_MAKERS: dict[str, Any] = {
    "relu": nn.ReLU,
    "relu_": lambda: nn.ReLU(True),
    "leaky_relu": _leaky,
    "leaky_relu_": lambda slope=0.01: nn.LeakyReLU(slope, True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "dropout": _dropout,
    "interpolate": _enlarged,
    "upsample": _enlarged,
}
