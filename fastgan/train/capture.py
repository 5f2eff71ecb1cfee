"""``fastgan.capture``: anyone's own training function as one CUDA graph."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fastgan.errors import UserError
from fastgan.train.capture_graph import CudaRunner, EagerRunner, Graph, Runner
from fastgan.train.capture_inputs import Inputs
from fastgan.train.capture_snapshot import Snapshot

_strict: ContextVar[bool] = ContextVar("strict", default=False)


@contextmanager
def strict() -> Iterator[None]:
    """Context in which steps that are captured for the CPU run under the rules of a CUDA graph.

    Inputs and outputs are static, the step is tried out and undone, and what a graph forbids is forbidden in each call:
    what passes here is ready for a GPU, but for what only CUDA knows. Slow: for tests.
    """
    token = _strict.set(True)
    try:
        yield
    finally:
        _strict.reset(token)


def runner_for(device: torch.device) -> Runner | None:
    """Return what captures steps on a device: graphs on a GPU, a stand-in for them under :func:`strict`, else None."""
    if device.type == "cuda":
        return CudaRunner(device)
    return EagerRunner(device) if _strict.get() else None


def capture(
    step: Callable[..., Any], *, state: Sequence[object], warmup: int = 3, clone_outputs: bool = False
) -> Callable[..., Any]:
    """Return ``step`` as a function that replays one CUDA graph: one launch for the host, whatever the step launches.

        lr = torch.tensor(2e-4, device="cuda")
        optimizer = torch.optim.Adam(net.parameters(), lr=lr, capturable=True)

        def step(x, y):
            optimizer.zero_grad(set_to_none=True)
            loss = F.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        step = fastgan.capture(step, state=[net, optimizer])

    Every call is one true step, the first one too: it tries the step out ``warmup`` times on a side stream, puts
    weights, buffers, optimiser states, gradients and random streams back to the bit, makes the step once eagerly, and
    captures it. An exception in it leaves everything as it was. Losses with double backward, several optimisers,
    BatchNorm, dropout and autocast (without a GradScaler, which asks the host) need nothing special.

    What a graph is, and what follows from it:

    - *Python runs no more.* Branches, loop counts, numbers, ``training`` and autocast are frozen as they were in the
      first call. What has to move is a tensor on the device that is written in place: ``lr.fill_(1e-4)``, which
      PyTorch's schedulers do for a learning rate that is a tensor. Other numbers of an optimiser are frozen.
    - *Memory stays where it is.* Tensors are copied into the inputs of the first call: shapes, dtypes, device and
      structure are fixed. The step sees the copies: what it writes into an input does not reach the caller's. Arguments
      that are no tensors are constants.
    - *Outputs are overwritten* by the next call; they carry no autograd graph. ``clone_outputs=True`` returns copies.
    - *Gradients* that the step leaves in ``.grad`` are the last step's, in the graph's memory, overwritten likewise. A
      gradient of an input has to be returned.
    - *Memory* that the step needs between its kernels is the graph's for as long as the returned function lives.
    - *The host's random streams* would stand still: Python's and numpy's global ones are found out, generators of
      your own are not. PyTorch's generator of the device draws anew at each replay; other ones have to be in ``state``.

    On the CPU the step runs eagerly, as it is, and a warning says so once.

    Args:
        step: takes tensors, constants and nests (tuples, lists, dicts) of them; returns any nest of tensors.
        state: all that the step writes to: modules, optimisers, tensors, ``torch.Generator`` objects, and lists of
            these. Whatever else it writes to is an error.
        warmup: runs before the capture, at least 1; the last of them is watched for what a graph cannot do.
        clone_outputs: return outputs that the next call leaves alone.

    Raises:
        UserError: in the first call for what cannot be captured, with its line (``.item()``, ``bool(tensor)``,
            ``.cpu()``, ``.tolist()``, printing, ``nonzero`` and masks as indices, random numbers and data from the
            host, waiting for the device, memory outside ``state``), and for an optimiser that has a number for a
            learning rate or is not capturable, with the line to write instead; in a later one for inputs of another
            kind.
    """
    if not callable(step):
        raise UserError(f"capture takes a function, not {type(step).__name__!r}")
    if isinstance(state, (torch.nn.Module, torch.optim.Optimizer, Tensor)):
        raise UserError("state is a list of all that the step writes to: state=[net, optimizer]")
    if warmup < 1:
        raise UserError(f"warmup {warmup}: it has to be at least 1, for the run that finds what cannot be captured")
    captured = _Captured(step, list(state), warmup, clone_outputs)
    return functools.update_wrapper(captured, step, updated=())


class _Captured:
    """A step that is captured at its first call."""

    def __init__(self, step: Callable[..., Any], state: list[object], warmup: int, clones: bool) -> None:
        self._step, self._state, self._warmup, self._clones = step, state, warmup, clones
        self._eager = False
        self._inputs: Inputs | None = None
        self._graph: Graph | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._eager:
            return self._step(*args, **kwargs)
        if self._graph is None:
            return self._begin(args, kwargs)
        assert self._inputs is not None
        self._inputs.fill(args, kwargs)
        self._graph.replay()
        return self._outputs()

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = _device([*Snapshot(self._state, values=False).tensors(), *tree_leaves((args, kwargs))])
        runner = runner_for(device)
        if runner is None:
            self._eager = True
            warnings.warn(
                f"a CUDA graph needs a CUDA device, and this step is on {device.type!r}: it runs eagerly",
                RuntimeWarning,
                stacklevel=3,
            )
            return self._step(*args, **kwargs)
        self._inputs = inputs = Inputs(self._step, args, kwargs, device)

        def run() -> Any:
            given, named = inputs.arguments()
            return self._step(*given, **named)

        graph = Graph(run, [*self._state, *inputs.tensors], runner, warmup=self._warmup)
        graph.capture()
        self._graph = graph
        return self._outputs()

    def _outputs(self) -> Any:
        assert self._graph is not None
        return tree_map(_clone, self._graph.outputs) if self._clones else self._graph.outputs


def _device(leaves: Sequence[Any]) -> torch.device:
    """Where the step runs: on the one GPU that anything lies on, else on the CPU."""
    gpus = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == "cuda"}
    if len(gpus) > 1:
        names = ", ".join(sorted(map(str, gpus)))
        raise UserError(f"a graph runs on one device, and state and inputs lie on {names}: capture a step for each")
    others = {leaf.device for leaf in leaves if isinstance(leaf, Tensor)} - gpus
    return next(iter(gpus or others), torch.device("cpu"))


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
