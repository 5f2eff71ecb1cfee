"""``fastgan bench predict --gpu NAME``: what a training step would launch on a card, and how long that may take.

Predicted, not measured, and without a GPU: ``prediction.py`` says from what. Kernels are compiled once; what the
compiler made of them is kept in the cache (FASTGAN_CACHE).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastgan.benchmarks.environment import commit, now, version
from fastgan.benchmarks.forecasts import NAMES, VARIANTS, Forecast, dump
from fastgan.benchmarks.table import number, table
from fastgan.data.places import cache_folder
from fastgan.errors import UserError, require, unknown

if TYPE_CHECKING:
    from fastgan.benchmarks.prediction import Work
    from fastgan.benchmarks.prediction_cards import Gpu
    from fastgan.benchmarks.step_workloads import Workload
    from fastgan.kernels.variant import Variant

MOST = 12  # launches that are shown


def main(arguments: Sequence[str]) -> int:
    """Predict and print; mistakes are raised."""
    options = parse(arguments)
    from fastgan.benchmarks.step_workloads import workloads

    known = {workload.name: workload for workload in workloads()}
    for name in options.workload or ():
        if name not in known:
            raise unknown("workload", name, known)
    require("triton", why="predicting what kernels take")
    if not options.guess:
        from fastgan.benchmarks.compiled import refuse_interpreter

        refuse_interpreter()
    from fastgan.benchmarks.prediction_cards import GPUS

    gpu, found = GPUS[options.gpu], []
    for name in options.workload or known:
        for backend in options.backend:
            one = forecast(options, gpu, known[name], options.batch or known[name].batch, backend)
            print("\n".join(shown(one, options.launches)), flush=True)
            found.append(replace(one, lines=one.lines[: options.launches]))
    print("predicted, not measured: every constant is an assumption, benchmarks/prediction.py states them")
    if options.json is not None:
        about = {"title": gpu.title, "arch": gpu.arch, "date": now(), **commit(), "triton": version("triton")}
        about |= {"torch": torch.__version__, "compiled": not options.guess}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(dump(options.gpu, found, **about), indent=1) + "\n", encoding="utf-8")
        print(f"written to {options.json}")
    return 0


def forecast(options: argparse.Namespace, gpu: Gpu, workload: Workload, batch: int, backend: str) -> Forecast:
    """Predict one step."""
    from fastgan.benchmarks.prediction import floor_us, guess

    found = recorded(workload, batch, backend, gpu)
    lines: dict[tuple[object, ...], dict[str, Any]] = {}
    total = 0.0
    for phase, name, work in found:
        code = occupied(work, gpu, options.guess)
        guessed = guess(work, gpu, code.get("blocks", 1))
        programs = work.launch.programs if work.launch else None
        tile = str(work.launch.config) if work.launch and work.problem else None
        line = {"phase": phase, "name": name, "tile": tile, "programs": programs, "us": round(guessed.us, 2)}
        line |= {"bound": guessed.bound, "waves": guessed.waves or None, **code}
        line |= {"gflop": round(work.flops / 1e9, 4), "mb": round(work.moved / 1e6, 3)}
        lines.setdefault(tuple(line.values()), {**line, "times": 0})["times"] += 1
        total += guessed.us
    flops, moved = sum(work.flops for *_, work in found), sum(work.moved for *_, work in found)
    least = floor_us(flops, moved, gpu.offers)
    ordered = sorted(lines.values(), key=lambda line: -line["us"] * line["times"])
    gflop, gbytes, least, total = (round(value, 3) for value in (flops / 1e9, moved / 1e9, least, total))
    about = (options.gpu, workload.name, batch, backend, len(found))
    return Forecast(*about, gflop, gbytes, least, total, ordered)


def recorded(workload: Workload, batch: int, backend: str, gpu: Gpu) -> list[tuple[str, str, Work]]:
    """Return what a captured step would launch on the card: phase, name and work of each."""
    from fastgan.benchmarks.launch_count import counting, iteration
    from fastgan.benchmarks.prediction import Recorder
    from fastgan.ops.backend import backend as on
    from fastgan.train.capture import strict

    threads, recorder = torch.get_num_threads(), Recorder()
    with strict(), on(backend), counting(gpu.arch, gpu.table, gpu.offers.multiprocessors, recorder) as count:
        launched = iteration(workload.trainer(batch, torch.device("cpu"), precision="bf16"), count)
    torch.set_num_threads(threads)
    return [(one.phase, one.name, work) for one, work in zip(launched, recorder.works, strict=True)]


def occupied(work: Work, gpu: Gpu, guessed: bool) -> dict[str, int]:
    """Return registers, shared memory and programs on a multiprocessor of a kernel of ours."""
    if work.launch is None:
        return {}
    if guessed:
        from fastgan.benchmarks.cards import occupancy
        from fastgan.kernels import cost

        if work.problem is not None:
            return {"blocks": cost.at_once(work.problem, work.launch.config, gpu.offers)}
        config = work.launch.config
        blocks, _ = occupancy(gpu.arch, warps=config.warps, registers=config.registers, shared=0)
        return {"blocks": blocks}
    return compiled(work.launch.variant("step", "", 0), gpu.arch)


def compiled(variant: Variant, arch: int) -> dict[str, int]:
    """Return what the compiler made of a kernel, from the cache where it stands there."""
    path = cache_folder() / "compiled" / f"{identity(variant, arch)}.json"
    try:
        kept: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    except (OSError, ValueError):
        pass
    from fastgan.benchmarks.cards import occupancy
    from fastgan.benchmarks.compiled import compile_variant, resources

    kernel = compile_variant(variant, arch)
    registers, shared = resources(kernel, arch)["registers"], kernel.metadata.shared
    blocks, _ = occupancy(arch, warps=variant.num_warps, registers=registers, shared=shared)
    found = {"registers": registers, "shared": shared, "blocks": blocks}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    return found


def identity(variant: Variant, arch: int) -> str:
    """Return what a compiled form depends on, as a name."""
    fields: tuple[object, ...] = (variant.fn.cache_key, sorted(variant.signature.items()), sorted(variant.divisible))
    fields += (sorted((name, repr(value)) for name, value in variant.constexprs.items()), variant.num_warps)
    fields += (variant.num_stages, variant.register_cap, arch, version("triton"))
    return hashlib.sha256(repr(fields).encode()).hexdigest()[:32]


COLUMNS = {
    "phase": lambda line: line["phase"],
    "launch": lambda line: line["name"],
    "times": lambda line: str(line["times"]),
    "us each": lambda line: number(line["us"]),
    "bound": lambda line: line["bound"],
    "tile": lambda line: line["tile"] or "",
    "programs": lambda line: number(line["programs"]),
    "waves": lambda line: number(line["waves"]),
    "blocks/SM": lambda line: number(line.get("blocks")),
    "registers": lambda line: number(line.get("registers")),
    "shared B": lambda line: number(line.get("shared")),
    "GFLOP": lambda line: number(line["gflop"]),
    "MB": lambda line: number(line["mb"]),
}


def shown(one: Forecast, most: int) -> Iterator[str]:
    """Yield a prediction in words, and its longest launches."""
    yield (
        f"{one.workload}, batch {one.batch}, bf16, backend {one.backend}, on {one.gpu}: {one.predicted_us:,.0f} us a"
        f" step in {one.launches} launches; floor {one.floor_us:,.1f} us ({one.gflop:.3g} GFLOP, {one.gbytes:.3g} GB)"
    )
    if most:
        yield table(COLUMNS, one.lines[:most])
        rest = one.lines[most:]
        if rest:
            yield f"and {sum(line['times'] for line in rest)} launches of {spent(rest):,.0f} us"
    by_bound: dict[str, float] = {}
    for line in one.lines:
        by_bound[line["bound"]] = by_bound.get(line["bound"], 0.0) + line["us"] * line["times"]
    yield "limited by: " + ", ".join(f"{name} {us / one.predicted_us:.0%}" for name, us in ranked(by_bound))
    yield ""


def spent(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the microseconds of some lines."""
    return sum(float(line["us"]) * int(line["times"]) for line in lines)


def ranked(sums: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the largest first."""
    return sorted(sums.items(), key=lambda entry: -entry[1])


def count(text: str) -> int:
    """Parse a number of lines, which may be 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("0 or more")
    return value


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command's own words."""
    from fastgan.benchmarks.command import Parser, make_room, positive

    parser = Parser(prog="fastgan bench predict", description="Predict training steps on a card that is not here.")
    parser.add_argument("--gpu", required=True, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="only these training steps; else all")
    parser.add_argument("--batch", type=positive, metavar="N", help="default: that of the published code")
    backends = tuple(VARIANTS)
    parser.add_argument(
        "--backend", nargs="+", choices=backends, default=backends[:1], help="our kernels alone, or what auto chooses"
    )
    parser.add_argument("--launches", type=count, default=MOST, metavar="N", help=f"show and write so many ({MOST})")
    parser.add_argument("--guess", action="store_true", help="compile nothing: guess how many programs run at once")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the predictions there, for the report")
    options = parser.parse_args(arguments)
    if options.gpu not in NAMES:
        raise unknown("GPU", options.gpu, NAMES)
    if options.batch == 1:
        raise UserError("--batch must be at least 2: a batch norm has no variance of one sample")
    if options.json is not None:
        make_room(options.json)
    return options
