"""Suite ``dropin``: models as other people write them, before and after ``fastgan.convert``; training and inference.

Everyone is checked before anyone is timed. In training the losses of the first steps and the way that the weights went
are those of the model as it was, from the same weights on the same samples; in inference the outputs are, by the rule
of the gate. Dropout is off for the check, since a kernel draws other masks. What is timed is the same model, before and
after the conversion, called as it is, compiled, and on a GPU under ``fastgan.capture``.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgan.benchmarks import drop_in_goals, gate, ladder
from fastgan.benchmarks.contenders import obstacle, where
from fastgan.benchmarks.drop_in_goals import AFTER, BEFORE, CAPTURED, COMPILED, TRITON
from fastgan.benchmarks.drop_in_models import STYLES, Style
from fastgan.benchmarks.drop_in_objectives import step
from fastgan.benchmarks.measure import Call
from fastgan.benchmarks.race import peak_memory, time_device, time_wall
from fastgan.benchmarks.record import Check, Row, Timed, said
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError, unknown

MODES = ("training", "inference")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # of autocast


@dataclass(frozen=True)
class Way:
    """One way to run a model."""

    name: str
    converted: bool = False
    compiled: bool = False
    captured: bool = False
    backend: str = "auto"


WAYS = (
    Way(BEFORE),
    Way(BEFORE + COMPILED, compiled=True),
    Way(BEFORE + CAPTURED, captured=True),
    Way(AFTER, converted=True),
    Way(AFTER + COMPILED, converted=True, compiled=True),
    Way(AFTER + CAPTURED, converted=True, captured=True),
    Way(TRITON, converted=True, backend="triton"),
)


@dataclass(frozen=True)
class Race:
    """What is raced: a style in one mode, batch and dtype."""

    style: Style
    mode: str
    batch: int
    dtype: str
    full: bool
    channels_last: bool = False

    @property
    def workload(self) -> str:
        """How rows call it."""
        return f"{self.style.name} {self.mode}"

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Return the context that forward passes run in."""
        lower = DTYPES[self.dtype]
        return contextlib.nullcontext() if lower is None else torch.autocast(device.type, lower)


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--style", nargs="+", metavar="NAME", help="only these manners of writing models")
    parser.add_argument("--mode", nargs="+", choices=MODES, help="only these")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="these batches")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these; 16 bits by autocast")
    parser.add_argument("--channels-last", action="store_true", help="lay everyone's images out so")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each style, mode, batch and dtype."""
    options, known = vars(setting.options), {style.name: style for style in STYLES}
    names = options.get("style") or [*known]
    for name in names:
        if name not in known:
            raise unknown("style", name, known)
    if min(options.get("batch") or [1]) < 1:
        raise UserError("--batch must be at least 1")
    dtypes = options.get("dtype") or (DTYPES if setting.on_gpu else ["float32"])
    plan = []
    for style in (known[name] for name in names):
        for batch in options.get("batch") or [2 if setting.smoke else style.batch]:
            for mode in options.get("mode") or MODES:
                for at, dtype in enumerate(dtypes):
                    whole = -(-batch // style.pack) * style.pack
                    last = bool(options.get("channels_last"))
                    race = Race(style, mode, whole, dtype, not setting.smoke, last)
                    task = functools.partial(measure, setting, race)
                    plan.append(Task(f"{race.workload} batch {whole} {dtype}", task, at))
    return plan


def measure(setting: Setting, race: Race) -> Iterator[Row]:
    """Check and time one race; yields a row for each way, with the reason where it was not run."""
    rows = {
        way.name: Timed(race.workload, way.name, f"batch {race.batch}", race.dtype, baseline=BEFORE) for way in WAYS
    }
    calls: dict[str, list[Call]] = {}
    judge = Judge(setting, race)
    for way in WAYS:
        row = rows[way.name]
        row.note = absent(setting, way)
        if row.note is None:
            try:
                row.check = judge(way)
                if row.check.passed:
                    calls[way.name] = [prepared(setting, race, way)]
            except Exception as error:  # torch.compile has no second derivatives
                row.note = f"not measured: {said(error)}"
                row.check = Check(False, why=said(error)) if not way.compiled else None
        row.note = "; ".join(filter(None, (row.note, *where(setting)))) or None
    timed = {name: rows[name] for name in calls}
    time_wall(timed, calls, setting)
    time_device(timed, calls, setting)
    for way in WAYS:
        if way.name in timed:
            finish(rows[way.name], way, calls[way.name][0], setting)
    yield from rows.values()


def finish(row: Timed, way: Way, call: Call, setting: Setting) -> None:
    """Say of a captured way that its times are those of a replay; add the memory."""
    row.l2 = "resident"
    if way.captured:
        row.graph_us, row.device_us = row.device_us, None
    if setting.on_gpu:
        row.peak_bytes = peak_memory(call, setting.device)


def absent(setting: Setting, way: Way) -> str | None:
    """Return why a way is not gone here; None where it is."""
    if way.captured and not setting.on_gpu:
        return "not measured: a CUDA graph needs a GPU"
    if way.compiled and setting.smoke:
        return "not measured: the smoke form compiles nothing"
    if way.backend == "triton" and (why := obstacle(setting, "linear_act", "float32")) is not None:
        return f"not measured: {why}"
    return None


class Judge:
    """Compares a way with the model as it was; that one, with itself in fp64 or, in training, with nothing."""

    def __init__(self, setting: Setting, race: Race) -> None:
        self.setting, self.race = setting, race
        self._trace: ladder.Trace | None = None
        self._outputs: tuple[list[Tensor], list[Tensor]] | None = None

    def __call__(self, way: Way) -> Check:
        """Return the verdict; the first is that of the model as it was."""
        return self.training(way) if self.race.mode == "training" else self.inference(way)

    def training(self, way: Way) -> Check:
        """Judge the first steps: their losses, and how far the weights went."""
        trainee = Trainee(self.setting, self.race, way, check=True)
        begin = [[p.detach().clone() for p in network.parameters()] for network in trainee.networks.values()]
        losses = torch.stack([trainee.once().double().cpu() for _ in range(ladder.CHECKED_STEPS)])
        moved = [ladder.distance(net, saved) for net, saved in zip(trainee.networks.values(), begin, strict=True)]
        trace = ladder.Trace(losses, torch.stack(moved))
        self._trace = self._trace or trace
        return ladder.judge(trace, self._trace, ladder.TOLERANCE[self.race.dtype])

    def inference(self, way: Way) -> Check:
        """Judge the outputs by the gate's rule."""
        outputs = gate.tensors(inferring(self.setting, self.race, way)())
        if self._outputs is None:
            exact = gate.tensors(inferring(self.setting, self.race, way, torch.float64)())
            self._outputs = [t.clone() for t in outputs], exact
            return gate.check_baseline(outputs, exact, self.ulp)
        return gate.check(outputs, *self._outputs, self.ulp)

    @property
    def ulp(self) -> float | None:
        """How far apart the numbers inside are: fewer bits than the outputs have, under autocast and in TF32."""
        lower = DTYPES[self.race.dtype]
        if lower is not None:
            return torch.finfo(lower).eps
        return 2.0**-11 if self.setting.on_gpu else None


class Trainee:
    """A pair, its optimisers and one batch: to be trained again and again."""

    def __init__(self, setting: Setting, race: Race, way: Way, check: bool = False) -> None:
        self.networks = built(setting, race, way, check)
        rate = torch.tensor(race.style.rate, device=setting.device) if way.captured else race.style.rate
        eps = 1e-4 if check else 1e-8  # noise is not blown up to steps
        optimizers = {
            letter: torch.optim.Adam(net.parameters(), rate, race.style.betas, eps, capturable=way.captured)
            for letter, net in self.networks.items()
        }
        batch = race.style.draw(race.batch, setting.generator(), race.full)

        def run(batch: dict[str, Tensor]) -> Tensor:
            lower = functools.partial(race.autocast, setting.device)
            return step(race.style.objective, self.networks.get("G"), self.networks["D"], optimizers, batch, lower)

        self._ready = called(way, run, [*self.networks.values(), *optimizers.values()])
        self._batch = batch

    def once(self) -> Tensor:
        """Train once; return the losses."""
        losses = self._ready(self._batch)
        assert isinstance(losses, Tensor)
        return losses


def inferring(setting: Setting, race: Race, way: Way, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """Return a call that runs the generator, or where there is none the discriminator, without gradients."""
    letter, network = next(iter(built(setting, race, way, check=False).items()))
    network.eval().to(dtype)
    batch = race.style.draw(race.batch, setting.generator(), race.full)
    given = [t.to(dtype) if t.is_floating_point() else t for t in race.style.inputs(letter, batch)]

    def run(*inputs: Tensor) -> object:
        exact = contextlib.nullcontext() if dtype == torch.float64 else race.autocast(setting.device)
        with torch.no_grad(), exact:
            return network(*inputs)

    return functools.partial(called(way, run, [network]), *given)


def built(setting: Setting, race: Race, way: Way, check: bool) -> dict[str, nn.Module]:
    """Return a style's networks, from one seed whoever asks, converted and compiled as the way says."""
    from fastgan.nn import drop_in

    with torch.random.fork_rng([setting.device] if setting.on_gpu else []):
        torch.manual_seed(setting.seed)
        pair = race.style.networks(race.full)
    networks = {letter: net.to(setting.device) for letter, net in pair.named().items()}
    for network in networks.values():
        if check:
            undropped(network)
        if race.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if way.converted:
            drop_in.convert(network, channels_last=race.channels_last)
        if way.compiled:
            network.compile(dynamic=False)
    return networks


def undropped(network: nn.Module) -> None:
    """Turn dropout off, in training too."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def called(way: Way, run: Callable[..., object], state: list[object]) -> Callable[..., object]:
    """Return a call as the way has it: on its backend, and under ``fastgan.capture``."""
    from fastgan.ops.backend import backend
    from fastgan.train.capture import capture

    def on_backend(*given: object) -> object:
        with backend(way.backend):
            return run(*given)

    if not way.captured:
        return on_backend
    return capture(on_backend, state=state)


def prepared(setting: Setting, race: Race, way: Way) -> Call:
    """Return what is timed, made anew: what was checked has trained."""
    gc.collect()
    call = Trainee(setting, race, way).once if race.mode == "training" else inferring(setting, race, way)
    call()
    return call


SUITE = Suite(
    "dropin",
    "models as other people write them, before and after fastgan.convert, eager, compiled and captured",
    tasks,
    arguments,
    drop_in_goals.closing,
)
