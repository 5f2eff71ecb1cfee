"""Suite ``tune``: which tile is fastest on this card for each product of the workloads' layers, and what cuBLAS takes.

Tiles that the card cannot run are refused first, by ``kernels.problem.refusal`` and by compiling them: neither costs
GPU time. The rest comes in the order of ``kernels.cost``, and the first few are checked against fp64 and timed in turns
against cuBLAS with its elementwise kernel. The fastest goes into a table (``kernels/tables.py`` describes it) after
every product, so that an interruption loses one product, and the next run goes on where this one ended.
"""

from __future__ import annotations

import functools
import os
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan.benchmarks.ceilings import MATRIX, TF32_ULP
from fastgan.benchmarks.environment import environment
from fastgan.benchmarks.products import DIRECTIONS, OPS, Product, precision_of, problem_of, run
from fastgan.benchmarks.race import Contender, Workload, check_all, spread_out, time_replay, time_wall
from fastgan.benchmarks.record import Check, Row, Timed, said
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task
from fastgan.benchmarks.workloads import LAYERS
from fastgan.errors import UserError, require

if TYPE_CHECKING:
    from fastgan.kernels.launch import Launch
    from fastgan.kernels.problem import Config, Problem, Target
    from fastgan.kernels.tables import Entry

DTYPES = ("bfloat16", "tf32", "float32")  # by default; float16 shares bfloat16's entries
BATCHES = (64, 1024, 16384, 256, 4096, 16, 65536)  # what matters most first; a factor of 4 apart: nothing is far away
TINY = ((96, 24), (24, 1))  # features of the smoke form's layers, at a batch of 20
MOST = 16  # tiles that are timed for one product
LIBRARY = "library"  # cuBLAS and elementwise kernels, by torch


def arguments(parser: ArgumentParser) -> None:
    """Add the tuner's own options."""
    names = list(dict.fromkeys(layer.workload for layer in LAYERS))
    parser.add_argument("--plan", action="store_true", help="only list tiles, estimates and refusals; needs no GPU")
    parser.add_argument("--arch", type=int, default=90, metavar="90", help="of the plan, where there is no GPU")
    parser.add_argument("--workload", nargs="+", choices=names, help="only these networks")
    parser.add_argument("--op", nargs="+", choices=OPS, help="only these directions")
    parser.add_argument("--dtype", nargs="+", choices=tuple(MATRIX), help="only these")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="only these")
    parser.add_argument("--out", type=Path, metavar="PATH", help="the table to write; FASTGAN_CACHE/tuned/<gpu>.json")
    parser.add_argument("--again", action="store_true", help="measure what the table knows as well")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each product that the table does not know yet."""
    require("triton", why="tuning the kernels")
    options = setting.options
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if setting.on_gpu and interpreted:
        raise UserError("TRITON_INTERPRET=1 leaves nothing to tune: unset it")
    if not (setting.on_gpu or setting.smoke or options.plan):
        raise UserError(
            "tuning needs a CUDA device: `tune --plan` lists the tiles without one, `tune --smoke` tries it out"
        )
    rows = dict.fromkeys(products(setting))
    if options.plan or not (setting.on_gpu or interpreted):
        return [Task(str(one), functools.partial(plan, setting, one), at) for at, one in enumerate(rows)]
    path, known = table_of(setting), set()
    if path is not None and not options.again:
        known = {(*entry.group, *entry.sizes) for entry in entries_of(path, setting) if entry.by == versions()}
    problems = ((one, problem_of(one, target_of(setting, one))) for one in rows)
    todo = [one for one, problem in problems if (*problem.group, *problem.sizes) not in known]
    return [Task(str(one), functools.partial(tune, setting, one, path), at) for at, one in enumerate(todo)]


def products(setting: Setting) -> Iterator[Product]:
    """Yield what is to be tuned, most important first; some come twice."""
    options = setting.options
    dtypes = options.dtype or (("float32",) if setting.smoke else DTYPES)
    if setting.smoke:
        layers: list[tuple[int, int, Sequence[int]]] = [(*features, options.batch or (20,)) for features in TINY]
    else:
        wanted = [layer for layer in LAYERS if layer.workload in (options.workload or [layer.workload])]
        layers = [
            (layer.in_features, layer.rows, layer.batches if layer.workload == "square" else BATCHES)
            for layer in wanted
        ]
    for dtype in dtypes:
        for at in range(len(BATCHES)):
            for fan_in, fan_out, batches in layers:
                batch = (options.batch or batches)[at : at + 1]
                yield from (Product(op, size, fan_in, fan_out, dtype) for size in batch for op in options.op or OPS)


def target_of(setting: Setting, product: Product) -> Target:
    """Return the device at hand; without one, the architecture that the plan is for."""
    from fastgan.kernels.problem import Target

    with precision_of(product):
        if setting.on_gpu or not setting.options.plan:
            return Target.of(torch.empty(1, dtype=MATRIX[product.dtype], device=setting.device))
        return Target(setting.options.arch, "ieee" if product.dtype == "float32" else "tf32")


def ordered(problem: Problem) -> list[tuple[float, Config]]:
    """Return the tiles that can be run, with their estimates, least first."""
    from fastgan.kernels import cost
    from fastgan.kernels.tile import candidates

    estimates = [(cost.estimate(problem, config), config) for config in candidates(problem, wide=True)]
    return sorted(estimates, key=lambda pair: pair[0])


def label(config: Config) -> str:
    """Name a tile so that no other has the name."""
    return f"{config} {config.warps} warps {config.stages} stages"


def plan(setting: Setting, product: Product) -> Iterator[Row]:
    """List the tiles of one product: those that would be timed, then those that are refused and why."""
    from fastgan.kernels.tile import refused

    problem = problem_of(product, target_of(setting, product))
    lines = [
        (label(config), f"{time:.1f} us expected, {config.programs(problem.rows, problem.cols)} programs")
        for time, config in ordered(problem)[:MOST]
    ]
    lines += [(label(config), f"refused: {why}") for config, why in refused(problem)]
    for name, note in lines:
        yield Timed(product.op, name, product.shape, product.dtype, note=note)


def tune(setting: Setting, product: Product, path: Path | None) -> Iterator[Row]:
    """Time the likeliest tiles of one product and put the fastest into the table."""
    with precision_of(product):
        target = target_of(setting, product)
        problem = problem_of(product, target)
        workload, configs = contest(setting, product, problem, target)
        rows = timed(workload, setting)
    ours = [row for name, row in rows.items() if name in configs and row.passed and row.best]
    library = rows[LIBRARY]
    yield library
    if not ours:
        yield from (rows[name] for name in configs)
        return
    best = min(ours, key=lambda row: row.best.median if row.best else 0.0)
    best.note = "; ".join(filter(None, (best.note, f"the fastest of {len(ours)}")))
    yield best
    yield from (row for row in rows.values() if not row.passed and row is not library)
    if path is not None and best.best is not None:
        from fastgan.kernels.tables import Entry

        library_us = library.best.median if library.best else None
        keep(path, setting, Entry.of(problem, configs[best.variant], best.best.median, library_us, versions()))


def contest(setting: Setting, product: Product, problem: Problem, target: Target) -> tuple[Workload, dict[str, Config]]:
    """Return cuBLAS and the likeliest tiles as contenders, those left out that the compiler spills."""
    shapes, library, launched = DIRECTIONS[product.op](product, target)
    dtype = MATRIX[product.dtype]
    meta = tuple(torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
    configs: dict[str, Config] = {}
    for _, config in ordered(problem):
        if len(configs) == (2 if setting.smoke else MOST):
            break
        if not (setting.on_gpu and spills(launched(*meta, config=config)[0], target.arch)):
            configs[label(config)] = config

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        place = {"device": setting.device, "generator": generator}
        return tuple(torch.randn(shape, **place).to(dtype) for shape in shapes)  # type: ignore[call-overload]

    contenders: dict[str, Contender] = {LIBRARY: library}
    contenders |= {name: functools.partial(run, launched, config) for name, config in configs.items()}
    ulp = TF32_ULP if product.dtype == "tf32" else None
    return Workload(product.op, product.shape, product.dtype, inputs, contenders, library, ulp=ulp), configs


def timed(workload: Workload, setting: Setting) -> dict[str, Timed]:
    """Check every contender and time those that are right: by replays of a graph, without a GPU by the host's clock."""
    inputs = workload.inputs(setting.generator())
    checks: dict[str, Check] = check_all(workload, inputs)
    rows = {
        name: Timed(workload.name, name, workload.shape, workload.dtype, checked, LIBRARY)
        for name, checked in checks.items()
    }
    copies, l2 = spread_out(inputs, setting, workload.resident)
    calls = {
        name: [functools.partial(workload.contenders[name], *copy) for copy in copies]
        for name, checked in checks.items()
        if checked.passed
    }
    right = {name: rows[name] for name in calls}
    if setting.on_gpu:
        time_replay(right, calls, setting)
    else:
        time_wall(right, calls, setting)
    for row in right.values():
        row.l2 = l2
    return rows


_spills: dict[str, bool] = {}  # by compiled form


def spills(launch: Launch, arch: int) -> bool:
    """Whether the compiler spills this launch's kernel, or refuses it."""
    from fastgan.benchmarks.compiled import compile_variant, resources

    variant = launch.variant("linear", "", 0)
    facts = sorted(variant.signature.items()), sorted(variant.constexprs.items()), sorted(variant.divisible)
    form = repr((variant.kernel, facts, variant.num_warps, variant.num_stages, variant.register_cap, arch))
    if form not in _spills:
        try:
            _spills[form] = bool(resources(compile_variant(variant, arch), arch)["stack_bytes"])
        except Exception:  # whatever a compiler says of a kernel that it does not take
            _spills[form] = True
    return _spills[form]


def versions() -> str:
    """Name what kernels and cuBLAS come from: entries of other versions are measured again."""
    import triton

    return f"torch {torch.__version__}, triton {triton.__version__}"


def table_of(setting: Setting) -> Path | None:
    """Return the table to write; the smoke form writes none that it was not told to."""
    from fastgan.kernels.tables import local_path

    out: Path | None = setting.options.out
    if out is None:
        return None if setting.smoke else local_path(name_of(setting))
    if {"site-packages", "dist-packages"} & set(out.resolve().parts):
        raise UserError(f"--out {out} lies in an installed package: leave --out away, or name a file of your own")
    return out


def name_of(setting: Setting) -> str:
    """Return the card's name as its table has it; what is interpreted is of no card."""
    from fastgan.kernels.problem import slug

    return slug(torch.cuda.get_device_name(setting.device)) if setting.on_gpu else "interpreter"


def entries_of(path: Path, setting: Setting) -> list[Entry]:
    """Return what a table knows; one that is not of this card is a user's mistake."""
    from fastgan.kernels.tables import TableError, read

    try:
        return read(path, name_of(setting))
    except (OSError, TableError) as error:
        raise UserError(
            f"{path} is no table to go on with: {said(error)}; name another by --out, or delete it"
        ) from error


def keep(path: Path, setting: Setting, entry: Entry) -> None:
    """Put an entry into the table, whole or not at all, and let this process choose by it."""
    from fastgan.kernels.launch import forget
    from fastgan.kernels.tables import merged, write
    from fastgan.ops import conv_choice, linear_choice

    known = entries_of(path, setting)
    try:
        write(path, name_of(setting), environment(setting), merged(known, [entry]))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; name another place by --out") from error
    forget()
    linear_choice.forget()
    conv_choice.forget()


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how often a kernel of ours was the faster one."""
    found = [row for row in rows if isinstance(row, Timed)]
    if not any(row.best for row in found):
        yield "nothing was run: these are estimates, to order tiles by"
        return
    library = {(row.workload, row.shape, row.dtype): row for row in found if row.variant == LIBRARY and row.best}
    pairs = [
        (row.best.median, rival.best.median)
        for row in found
        if row.variant != LIBRARY and row.best and (rival := library.get((row.workload, row.shape, row.dtype)))
        if rival.best
    ]
    faster = sum(ours <= theirs for ours, theirs in pairs)
    yield f"{faster} of {len(pairs)} products are faster by our kernels, the others by cuBLAS"


SUITE = Suite(
    "tune", "the fastest tile for each product of the workloads' layers, into a table", tasks, arguments, closing
)
