"""Whole iterations as graphs: one for each pattern that the host may ask for, captured when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence

from fastgan.errors import UserError
from fastgan.train.capture_graph import Graph, Runner
from fastgan.train.dials import Dials
from fastgan.train.step import Pattern, Step

WARMUP = 3


class Replays:
    """Runs iterations by replaying graphs. ``state`` is all that an iteration writes to.

    Several iterations may go into one graph, where one is shorter than what it costs to launch a graph. Each way of
    putting them together is captured once, and all graphs share one pool of memory: they run one after the other.
    """

    def __init__(self, step: Step, state: Sequence[object], runner: Runner) -> None:
        self._step, self._state, self._runner = step, list(state), runner
        self._graphs: dict[tuple[Pattern, ...], Graph] = {}

    def __call__(self, patterns: tuple[Pattern, ...]) -> None:
        """Perform one iteration for each pattern. Raises UserError where a line of the networks cannot be captured."""
        graph = self._graphs.get(patterns)
        if graph is None:

            def iterations() -> None:
                for pattern in patterns:
                    self._step(pattern)

            graph = self._graphs[patterns] = Graph(iterations, self._state, self._runner, warmup=WARMUP)
        try:
            graph()
        except UserError as error:
            raise UserError(f"{error}; or set graph=false, and steps run one kernel at a time") from error


class Eagerly:
    """Runs iterations as they are."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, patterns: tuple[Pattern, ...]) -> None:
        """Perform one iteration for each pattern."""
        for pattern in patterns:
            self._step(pattern)


def runs(step: Step, dials: Dials, kept: Sequence[object], runner: Runner | None) -> Replays | Eagerly:
    """Replays of what a step writes to, together with what is ``kept`` aside; without a ``runner`` the step itself."""
    return runs_all(step, [(step, dials, kept)], runner)


def runs_all(
    step: Step, members: Sequence[tuple[Step, Dials, Sequence[object]]], runner: Runner | None
) -> Replays | Eagerly:
    """As ``runs``, of one step that moves all of these: each by its own step, its dials and what is kept aside."""
    if runner is None:
        return Eagerly(step)
    state: list[object] = [*step.buffers]
    for own, dials, kept in members:
        state += [*vars(own.players).values(), dials.clock, dials.values, own.meter.sums, own.meter.counts, *kept]
    return Replays(step, state, runner)
