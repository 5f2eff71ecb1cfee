"""What a converted module runs in place of its forward: the traced code with its stretches, or its members in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastgan.nn import chain
from fastgan.nn.chain_members import Fused, plan
from fastgan.nn.drop_in.calls import Key
from fastgan.nn.drop_in.conditional import conditionals, runner
from fastgan.nn.drop_in.members import Step, flat, members_of
from fastgan.nn.drop_in.stretches import PRODUCTS, Product, Stretch, stretches
from fastgan.nn.drop_in.tracing import Traced, trace

ONE_STRETCH = ["placeholder", "placeholder", "call_function", "output"]


class Part(NamedTuple):
    """What of a module was replaced."""

    path: str  # of its first layer, within the module
    what: str
    modules: tuple[nn.Module, ...]


class Program(NamedTuple):
    """Runs in place of a forward, while it ``holds``."""

    run: Callable[..., Any]  # (module, module, *tensors)
    parts: tuple[Part, ...]
    traced: Traced | None = None
    steps: tuple[Step, ...] | None = None  # where it runs these in order and does nothing else

    def holds(self, module: nn.Module) -> bool:
        """Whether the module is still such that the program does what its forward does."""
        return self.traced is None or self.traced.holds(module)


class Tally:
    """Counts the FLOPs of what was replaced, running its members one by one."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)
        self.covered = 0

    def through(self, members: list[nn.Module], input: Tensor) -> Tensor:
        """Run members, and count those that go together."""
        for step in plan(members):
            before = self.counter.get_total_flops()
            for member in [step] if isinstance(step, nn.Module) else [m for fused in step for m in fused.members]:
                input = member(input)
            self.covered += 0 if isinstance(step, nn.Module) else self.counter.get_total_flops() - before
        return input

    def product(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run a functional product, and count it."""
        before = self.counter.get_total_flops()
        output = function(*args, **kwargs)
        self.covered += self.counter.get_total_flops() - before
        return output


tally: Tally | None = None  # while a model's FLOPs are counted


def through(members: list[nn.Module], input: Tensor) -> Tensor:
    """Run members, those that go together on the kernels."""
    return chain.through(members, input) if tally is None else tally.through(members, input)


def in_order(module: nn.Module, escapes: bool) -> Program:
    """Return the program of a module that calls its members in order; ``escapes``: its result is changed in place."""
    parts = []
    for run in plan(flat(module)):
        if not isinstance(run, nn.Module):
            parts.append(_part(module, run))

    def run_members(self: nn.Module, module: nn.Module, input: Tensor) -> Tensor:
        members = [member for child in module for member in flat(child)]  # type: ignore[attr-defined]
        kept = _unexposed(members) if escapes else len(members)
        output = through(members[:kept], input)
        for member in members[kept:]:
            output = member(output)
        return output

    return Program(run_members, tuple(parts))


def _unexposed(members: list[nn.Module]) -> int:
    """Return how many members can run before the last result would be wanted for backward by us, but not by torch."""
    last = list(plan(list(members)))[-1:]
    if not last or isinstance(last[0], nn.Module) or not last[0][-1].keeps_result:
        return len(members)
    fused = last[0][-1]
    return len(members) - len(fused.members) + fused.members.index(fused.core) + 1


def traced(module: nn.Module, escapes: bool, key: Key) -> Program:
    """Return the program of a module by its forward's trace; raise :class:`RefusedError` where it cannot be had."""
    found = trace(module, key)
    graph, parts = found.graph, list[Part]()
    whole = list(stretches(graph, module, escapes))
    with graph.inserting_before(next(iter(graph.nodes))):
        owner = graph.placeholder("fastgan_owner")
    for number, stretch in enumerate(whole):
        first, last = stretch.nodes[0], stretch.nodes[-1]
        with graph.inserting_before(first):
            if isinstance(stretch, Stretch):
                new = graph.call_function(_runner(stretch, number), (owner, first.args[0]))
                parts.append(_part(module, stretch.fused))
            else:
                new = graph.call_function(_product(stretch, number), first.args, first.kwargs)
                parts.append(Part("", _named(stretch), ()))
        last.replace_all_uses_with(new)
        for node in reversed(stretch.nodes):
            graph.erase_node(node)
    for number, normed in enumerate(list(conditionals(graph, module))):
        with graph.inserting_before(normed.total):
            normed.total.replace_all_uses_with(graph.call_function(runner(normed, number), (owner, *normed.operands)))
        for node in (normed.total, normed.product, normed.norm):
            graph.erase_node(node)
        norm = module.get_submodule(normed.path)
        parts.append(Part(normed.path, f"{_name(norm)} + scale + shift", (norm,)))
    code = graph.python_code("self")
    space: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, f"<{type(module).__name__}.forward, converted>", "exec"), space)
    alone = whole[0] if len(whole) == 1 and [node.op for node in graph.nodes] == ONE_STRETCH else None
    steps = tuple(alone.steps) if isinstance(alone, Stretch) else None
    return Program(space["forward"], tuple(parts), found, steps)


def _runner(stretch: Stretch, number: int) -> Callable[[nn.Module, Tensor], Tensor]:
    steps = tuple(stretch.steps)

    def run(owner: nn.Module, input: Tensor) -> Tensor:
        return through(members_of(steps, owner), input)

    run.__name__ = run.__qualname__ = f"stretch_{number}"
    return run


def _product(product: Product, number: int) -> Callable[..., Tensor]:
    function: Any = product.nodes[0].target
    op: Any = PRODUCTS[function]
    told = {"activation": product.activation, "negative_slope": product.slope}

    def run(*args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = op(*args, **kwargs, **told) if tally is None else tally.product(op, *args, **kwargs, **told)
        return output

    run.__name__ = run.__qualname__ = f"product_{number}"
    return run


def _part(module: nn.Module, run: list[Fused]) -> Part:
    path = next((path for path, found in module.named_modules() if found is run[0].core), "")
    return Part(path, described(run), tuple(member for fused in run for member in fused.members))


def described(run: list[Fused]) -> str:
    """Say in words what goes together: ``ConvTranspose2d + BatchNorm2d + ReLU``."""
    return ", ".join(" + ".join(_name(member) for member in fused.members) for fused in run)


def _name(member: nn.Module) -> str:
    name = type(member).__name__.removeprefix("Parametrized")
    return f"LeakyReLU({member.negative_slope:g})" if isinstance(member, nn.LeakyReLU) else name


def _named(product: Product) -> str:
    return " + ".join(str(getattr(node.target, "__name__", node.target)) for node in product.nodes)
