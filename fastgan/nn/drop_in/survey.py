"""Goes through a module before it is converted: what can be replaced, what stays and why."""

from __future__ import annotations

import types
from collections.abc import Iterator

import torch
from torch import nn

from fastgan.nn.chain import Chain
from fastgan.nn.chain_members import ACTIVATIONS, FORMING, kind_of, overwrites, plain, take
from fastgan.nn.drop_in.calls import signature_of
from fastgan.nn.drop_in.converted import LONE, Converted, swap
from fastgan.nn.drop_in.forward_code import RefusedError, works_in_place
from fastgan.nn.drop_in.members import flat, sequential
from fastgan.nn.drop_in.program import Program
from fastgan.nn.drop_in.report import Entry
from fastgan.nn.drop_in.stretches import mutated
from fastgan.nn.drop_in.tracing import CONTAINERS, trace

LISTS = (nn.ModuleList, nn.ModuleDict)


class Survey:
    """What there is in a module: programs for the parts that are worth one, and entries for a report."""

    def __init__(self, module: nn.Module) -> None:
        self.paths = {id(m): path for path, m in reversed(list(module.named_modules(remove_duplicate=False)))}
        self.modules = [m for m in module.modules() if not isinstance(m, LISTS)]
        self.refused: dict[int, str] = {}
        self.unsafe = self._unsafe()
        self.replaced: list[Entry] = []
        self.kept: list[Entry] = []
        self._covered: set[int] = set()

    def _unsafe(self) -> set[int]:
        """Return the modules whose results may be changed in place by who calls them."""
        found: set[int] = set()
        graphs = {id(m): self._graph(m) for m in self.modules if composite(m) and not sequential(m)}
        before = -1
        while len(found) > before:
            before = len(found)
            for module in self.modules:
                if composite(module):
                    found |= set(map(id, _changed(module, graphs.get(id(module)), id(module) in found)))
        return found

    def _graph(self, module: nn.Module) -> torch.fx.Graph | None:
        try:
            return trace(module).graph
        except RefusedError as why:
            self.refused[id(module)] = str(why)
            return None

    def convert(self) -> None:
        """Convert what is worth it: parts first, so that who calls them knows what they are made of."""
        made: dict[int, Program] = {}
        for module in reversed(self.modules):
            if isinstance(module, Chain) or not (composite(module) or _functional(module)):
                continue
            program = swap(module, id(module) in self.unsafe)
            if program is not None:
                made[id(module)] = program
        for module in self.modules:
            if id(module) in made:
                self._record(
                    module, made[id(module)], "members in order" if sequential(module) else "found in a forward"
                )
            elif isinstance(module, Chain):
                self._covered |= {id(member) for member in flat(module)}
        for module in self.modules:
            if kind_of(module) in LONE and id(module) not in self._covered and take([module]) is not None:
                program = swap(module, False)
                assert program is not None
                self._record(module, program, "alone")
        self._keep()

    def _record(self, module: nn.Module, made: Program, why: str) -> None:
        for part in made.parts:
            if part.modules and all(id(m) in self._covered for m in part.modules):
                continue  # a part of what its parent runs
            path = ".".join(name for name in (self.paths[id(module)], part.path) if name)
            self.replaced.append(Entry(path, part.what, why))
            self._covered |= {id(m) for m in part.modules}

    def _keep(self) -> None:
        for module in self.modules:
            if id(module) in self._covered or isinstance(module, Converted):
                continue
            why = self.refused.get(id(module)) or reason(module)
            if why:
                self.kept.append(Entry(self.paths[id(module)], type(module).__name__, why))


def composite(module: nn.Module) -> bool:
    """Whether a module is somebody's own, made of others: to be looked into."""
    kind = kind_of(module)
    if isinstance(module, (*LISTS, torch.jit.ScriptModule)) or not module._modules:
        return False
    return sequential(module) or "forward" in vars(module) or not _torchs(kind)


def _functional(module: nn.Module) -> bool:
    """Whether a module without members has a forward of somebody's own."""
    return not module._modules and not _torchs(kind_of(module)) and not isinstance(module, torch.jit.ScriptModule)


def _torchs(kind: type) -> bool:
    home = (getattr(kind, "forward", None) or kind).__module__ or ""
    return home.startswith(("torch.", "fastgan.")) or home == "torch"


def _changed(module: nn.Module, graph: torch.fx.Graph | None, escapes: bool) -> Iterator[nn.Module]:
    """Yield the modules whose results a module changes in place, or hands on to somebody who may."""
    if sequential(module):
        members = list(module.children())
        if escapes:
            yield from members[:1]
        for member, following in zip(members, [*members[1:], None], strict=True):
            if escapes if following is None else any(map(overwrites, following.modules())):
                yield member
    elif graph is not None:
        called = [node for node in graph.nodes if node.op == "call_module"]
        yield from (module.get_submodule(str(n.target)) for n in called if _exposed(n, module, escapes))
    if sequential(module) or (graph is not None and _called_alike(module)):
        return
    if escapes or any(map(works_in_place, _methods(kind_of(module)))):
        yield from _within(module)


def _exposed(node: torch.fx.Node, module: nn.Module, escapes: bool) -> bool:
    """Whether what a module returns, or what it is given, may be changed in place."""
    given = [arg for arg in node.all_input_nodes if arg.op != "get_attr"]
    taken = (mutated(arg, module, but=node) or (escapes and arg.op == "placeholder") for arg in given)
    return mutated(node, module, escapes) or any(taken)


def _called_alike(module: nn.Module) -> bool:
    """Whether there is only one way to call a module."""
    signature = signature_of(kind_of(module).forward)
    return signature is not None and not signature.defaults


def _methods(kind: type) -> Iterator[types.FunctionType]:
    """Yield what of a class somebody wrote that may run in a forward pass."""
    for base in kind.__mro__:
        if not (base.__module__ or "").startswith("torch."):
            found = (value for name, value in vars(base).items() if not name.startswith("__"))
            yield from (value for value in found if isinstance(value, types.FunctionType))


def _within(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield child
        if isinstance(child, CONTAINERS):
            yield from _within(child)


def reason(module: nn.Module) -> str | None:
    """Say why a module was kept as it was; None of one that there is nothing to say about."""
    kind = kind_of(module)
    if isinstance(module, Chain):
        return "it is a Chain"
    if kind in LONE:
        if not plain(module, FORMING):
            return "it has hooks, or a forward of its own"
        if getattr(module, "groups", 1) != 1:
            return f"{module.groups} groups are PyTorch's"
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return f"padding by {module.padding_mode} is PyTorch's"
        return "the kernels do not take it"
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return "no layer that is replaced stands in front of it"
    if kind in ACTIVATIONS:
        apart = "no layer that is replaced stands next to it"
        return "it works in place on what others may read" if overwrites(module) else apart
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by torch.jit"
    return None
