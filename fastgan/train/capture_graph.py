"""A step without arguments as a graph: tried out, undone, made once, captured, and replayed from then on."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fastgan.errors import UserError
from fastgan.train import capture_blame as blame
from fastgan.train.capture_optimizers import refuse
from fastgan.train.capture_snapshot import Snapshot
from fastgan.train.capture_watch import DRAWS, Watch

Step = Callable[[], Any]


class Runner(Protocol):
    """What records a step and runs it again."""

    device: torch.device

    def aside(self) -> AbstractContextManager[None]:
        """Context for all that precedes a replay."""

    def capture(self, step: Step, state: Sequence[object], first: Any) -> tuple[Step, Any]:
        """Record a step without running it; return what runs it, and what its outputs are written to.

        ``first`` are the outputs of the last run.
        """


class CudaRunner:
    """Captures CUDA graphs on one side stream, into one pool of memory.

    Graphs of one runner are replayed one after the other, in any order: what a graph leaves behind for later, its
    outputs, gradients and state, is still held when the next one is captured, so that nobody else gets its memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._renew()

    def _renew(self) -> None:
        with torch.cuda.device(self.device):
            self._stream = torch.cuda.Stream(self.device)
            self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On the side stream, after what was queued before; what is queued afterwards waits for it."""
        with torch.cuda.device(self.device):
            current, stream = torch.cuda.current_stream(), self._stream
            stream.wait_stream(current)
            try:
                with torch.cuda.stream(stream):
                    yield
            finally:
                current.wait_stream(stream)

    def capture(self, step: Step, state: Sequence[object], first: Any) -> tuple[Step, Any]:
        """Record the kernels that a step launches. Raises ``UserError`` with the line that CUDA refuses."""
        graph = torch.cuda.CUDAGraph()
        generators = [g for g in Snapshot(state, values=False).generators if g.device.type == "cuda"]
        for generator in generators:
            graph.register_generator_state(generator)
        reached: BaseException | None = None
        collects = gc.isenabled()
        gc.collect()
        gc.disable()  # what a collection frees would be freed in the middle of the capture
        try:
            with (
                torch.cuda.stream(self._stream),  # left even where the end of a broken capture raises
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    outputs = step()
                except BaseException as error:
                    reached = error
                    raise
        except BaseException as error:
            self._renew()  # neither the stream nor the pool of a broken capture is used again
            _mend([torch.cuda.default_generators[torch.cuda.current_device()], *generators])
            earlier = reached or error
            if isinstance(earlier, RuntimeError):
                raise refused(earlier) from earlier
            raise earlier from None
        finally:
            if collects:
                gc.enable()
        return graph.replay, outputs


def _mend(generators: Sequence[torch.Generator]) -> None:
    """Have generators draw again, which a broken capture leaves believing that it goes on."""
    for generator in generators:
        try:
            torch.rand(1, device=generator.device, generator=generator)
        except RuntimeError:
            generator.graphsafe_set_state(generator.clone_state())


class EagerRunner:
    """Runs the step itself at each replay, and forbids what a captured one cannot do: a stand-in for a GPU.

    Outputs are written into the same tensors each time, as a graph does.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def aside(self) -> AbstractContextManager[None]:
        """No streams here."""
        return nullcontext()

    def capture(self, step: Step, state: Sequence[object], first: Any) -> tuple[Step, Any]:
        """Return the step, watched."""

        def replay() -> None:
            with Watch(self.device, state):
                outputs = step()
            _write(first, outputs)

        return replay, first


class Graph:
    """One variant of a training step. The first call makes the step and captures it, later ones replay it.

    Every call is one true step. Before the first, the step is tried out ``warmup`` times on a side stream, the last of
    them under a :class:`Watch`, and undone to the bit: weights, buffers, the optimisers' states, gradients, random
    streams and attributes. Then it is made once, eagerly, so that states that an optimiser begins at its first step
    have begun; then captured. An exception on the way leaves everything as it was.

    Args:
        step: takes nothing; reads from and writes to memory that stays where it is.
        state: all that it writes to: see :class:`Snapshot`.
        runner: graphs that share a runner share its memory.
        warmup: at least 1.
    """

    def __init__(self, step: Step, state: Sequence[object], runner: Runner, *, warmup: int = 3) -> None:
        if warmup < 1:
            raise UserError(f"warmup {warmup}: it has to be at least 1, for the run that finds what cannot be captured")
        self.outputs: Any = None
        self._step, self._state, self._runner, self._warmup = step, state, runner, warmup
        self._replay: Step | None = None

    def __call__(self) -> Any:
        """Make one step; return its outputs, which are the same tensors each time."""
        if self._replay is None:
            self.capture()
        else:
            self.replay()
        return self.outputs

    def capture(self) -> None:
        """Make one step eagerly and capture it."""
        refuse(self._state, self._runner.device)
        with self._runner.aside(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable=True", category=UserWarning)  # before the capture
            snapshot = Snapshot(self._state)
            try:
                self._try_out(snapshot)
                first = self._run()
                self._replay, self.outputs = self._captured(first)
            except BaseException:
                self._replay = None
                snapshot.restore()
                raise

    def replay(self) -> None:
        """Make one step by replaying it. Only after :meth:`capture`."""
        assert self._replay is not None
        self._replay()

    def _try_out(self, snapshot: Snapshot) -> None:
        for turn in range(self._warmup):
            watched = turn + 1 == self._warmup  # by then caches are filled
            with Watch(self._runner.device, self._state) if watched else nullcontext():
                self._run()
        streams = snapshot.moved_on_host()
        snapshot.restore()
        if streams:
            where = blame.line_that_draws(self._run)
            raise UserError(f"{where}: this line {DRAWS} ({' and '.join(streams)})")

    def _captured(self, first: Any) -> tuple[Step, Any]:
        """Capture; fill what the graph will write to with what the step just made has left."""
        before = Snapshot(self._state, values=False)
        replay, outputs = self._runner.capture(self._run, self._state, first)
        torch.clear_autocast_cache()  # it may hold casts that only a replay fills
        with torch.no_grad():
            for _, former, now, _ in before.replaced():
                if now is not former and now.shape == former.shape:
                    now.detach().copy_(former)
        _write(outputs, first)
        return replay, outputs

    def _run(self) -> Any:
        torch.clear_autocast_cache()  # a cast that is not made again here would not be made again by a replay
        return tree_map(_output, self._step())


def refused(error: BaseException) -> UserError:
    """Say in one line what CUDA refused to capture, and where."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    where = blame.line_of(error)
    return UserError(f"{where}: CUDA cannot capture this line: move it out of the step, or make it an input ({said})")


@torch.no_grad()
def _write(into: Any, values: Any) -> None:
    for target, value in zip(tree_leaves(into), tree_leaves(values), strict=True):
        if isinstance(target, Tensor) and target is not value:
            target.copy_(value)


def _output(leaf: Any) -> Any:
    """A tensor without its graph, each element of which has memory of its own."""
    if not isinstance(leaf, Tensor):
        return leaf
    repeats = any(stride == 0 and size > 1 for stride, size in zip(leaf.stride(), leaf.shape, strict=True))
    return leaf.detach().contiguous() if repeats else leaf.detach()
