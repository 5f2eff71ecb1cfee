"""Suite ``audit``: every variant of every kernel, compiled for every architecture and held to what its file states.

Runs without a GPU. A row fails on a spill, on more shared memory than a block may have, on more registers than stated,
on a matrix product that misses ``wgmma`` on sm_90, and where it does not compile.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
import random
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from fastgan.benchmarks.cards import CARDS, occupancy
from fastgan.benchmarks.compiled import compile_variant, instructions, matrix_precisions, refuse_interpreter, resources
from fastgan.benchmarks.record import Compiled, Row
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError, unknown
from fastgan.kernels.variant import Variant

ORDER = (90, 80, 100, 86, 89, 120)  # most important first
SLICE_ARCHS = (90, 86)  # of the smoke form, in turns: wgmma on the one, little shared memory on the other
MOST_FAULTS = 40  # that are printed
SLICE_VARIANTS = 1  # of each kernel, drawn by the seed


def arguments(parser: ArgumentParser) -> None:
    """Add the audit's own options."""
    parser.add_argument("--arch", type=architecture, nargs="+", help=f"architectures, of {', '.join(map(str, CARDS))}")
    parser.add_argument("--kernel", nargs="+", metavar="NAME", help="only these kernel files: a name, or a path to one")


def architecture(text: str) -> int:
    """Parse ``90``, ``sm_90`` or ``sm_90a``."""
    digits = text.removeprefix("sm_").removesuffix("a")
    if not digits.isdigit() or int(digits) not in CARDS:
        raise ArgumentTypeError(str(unknown("architecture", text, map(str, CARDS))))
    return int(digits)


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each variant and architecture."""
    refuse_interpreter()
    options = setting.options
    plan = []
    for place, name in enumerate(kernel_files(getattr(options, "kernel", None))):
        usual = (SLICE_ARCHS[place % len(SLICE_ARCHS)],) if setting.smoke else ORDER
        for arch in dict.fromkeys(getattr(options, "arch", None) or usual):
            variants = list(enumerate(variants_of(name, arch)))
            if setting.smoke:
                variants = draw(variants, setting.seed)
            for index, variant in variants:
                job = functools.partial(examine, name, arch, index)
                died = functools.partial(failed, name, arch, index)
                plan.append(Task(f"{variant.kernel} {variant.label} sm_{arch}", job, ORDER.index(arch), died))
    return plan


def kernel_files(names: Sequence[str] | None) -> list[str]:
    """Return the kernel files to audit: the named ones, else all that state variants."""
    package = importlib.import_module("fastgan.kernels")
    known = [module.name for module in pkgutil.iter_modules(package.__path__)]
    if names is None:
        return [name for name in known if hasattr(load(name), "variants")]
    for name in names:
        if not name.endswith(".py") and name not in known:
            raise unknown("kernel file", name, known)
        if name.endswith(".py") and not Path(name).is_file():
            raise UserError(f"no kernel file at {name}: give a name of {', '.join(known)} or an existing path")
        if not hasattr(load(name), "variants"):
            raise UserError(f"kernel file {name} states no variants: define variants(arch) -> Iterator[Variant] in it")
    return list(names)


@functools.cache
def load(name: str) -> ModuleType:
    """Import a kernel file by its name, or from a path."""
    if not name.endswith(".py"):
        return importlib.import_module(f"fastgan.kernels.{name}")
    path = Path(name).resolve()
    spec = importlib.util.spec_from_file_location(f"audited_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{name} cannot be imported as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def variants_of(name: str, arch: int) -> tuple[Variant, ...]:
    """Return what a kernel file states for an architecture."""
    return tuple(load(name).variants(arch))


def draw(variants: list[tuple[int, Variant]], seed: int) -> list[tuple[int, Variant]]:
    """Take a few variants of each kernel, the same for the same seed."""
    chance = random.Random(seed)
    taken: list[tuple[int, Variant]] = []
    for kernel in dict.fromkeys(variant.kernel for _, variant in variants):
        sisters = [pair for pair in variants if pair[1].kernel == kernel]
        taken += sorted(chance.sample(sisters, min(SLICE_VARIANTS, len(sisters))), key=lambda pair: pair[0])
    return taken


def examine(name: str, arch: int, index: int) -> Iterator[Row]:
    """Compile one variant and judge it."""
    start = time.monotonic()
    variant = variants_of(name, arch)[index]
    try:
        kernel = compile_variant(variant, arch)
        row = describe(variant, arch, kernel)
        row.problems += problems(variant, row, matrix_precisions(kernel))
    except Exception as error:
        row = failed(name, arch, index, f"does not compile: {type(error).__name__}: {last_line(error)}")
    row.seconds = round(time.monotonic() - start, 3)
    yield row


def failed(name: str, arch: int, index: int, why: str) -> Compiled:
    """Return the row of a variant that gave no code."""
    variant = variants_of(name, arch)[index]
    return Compiled(variant.op, variant.kernel, variant.label, arch, [why], max_registers=variant.max_registers)


def describe(variant: Variant, arch: int, kernel: object) -> Compiled:
    """Return what the compiler made, not yet judged."""
    metadata = kernel.metadata  # type: ignore[attr-defined]
    used = resources(kernel, arch)
    columns = getattr(metadata, "tmem_size", 0) or 0
    blocks, limiter = occupancy(
        arch,
        warps=metadata.num_warps,
        registers=used["registers"],
        shared=metadata.shared,
        tensor_columns=columns,
    )
    return Compiled(
        variant.op,
        variant.kernel,
        variant.label,
        arch,
        warps=metadata.num_warps,
        registers=used["registers"],
        stack_bytes=used["stack_bytes"],
        spill_bytes=used["spill_bytes"],
        max_registers=variant.max_registers,
        shared_bytes=metadata.shared,
        shared_limit_bytes=CARDS[arch].shared_block,
        tensor_memory_columns=columns,
        instructions=instructions(kernel),
        blocks_per_sm=blocks,
        limiter=limiter,
    )


def problems(variant: Variant, row: Compiled, precisions: set[str]) -> list[str]:
    """Say what is wrong with a compiled variant. No tensor core multiplies IEEE fp32: no wgmma is asked of it."""
    found = []
    if row.spill_bytes or row.stack_bytes:
        found.append(f"{row.stack_bytes} bytes of local memory, {row.spill_bytes} bytes of spill stores and loads")
    if (row.shared_bytes or 0) > (row.shared_limit_bytes or 0):
        found.append(f"{row.shared_bytes} bytes of shared memory: a block may have {row.shared_limit_bytes}")
    if (row.registers or 0) > variant.max_registers:
        found.append(f"{row.registers} registers: its file promises {variant.max_registers}")
    if variant.matrix_rows and not precisions:
        found.append(f"states a matrix tile of {variant.matrix_rows} rows but multiplies none")
    if row.arch == 90 and variant.matrix_rows >= 64 and precisions - {"ieee"} and not row.instructions["wgmma"]:
        found.append(f"no wgmma in a tile of {variant.matrix_rows} rows ({', '.join(sorted(precisions))})")
    return found


def last_line(error: Exception) -> str:
    """Return the line of a compiler's error that says most."""
    return (str(error).strip().splitlines() or [""])[-1][:300]


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Sum up by architecture, then name the problems."""
    compiled = [row for row in rows if isinstance(row, Compiled)]
    count = Counter(row.arch for row in compiled)
    for arch in sorted(count):
        own = [row for row in compiled if row.arch == arch]
        registers = max((row.registers or 0 for row in own), default=0)
        shared = max((row.shared_bytes or 0 for row in own), default=0)
        wrong = sum(not row.passed for row in own)
        most = f"up to {registers} registers and {shared} bytes of shared memory"
        yield f"sm_{arch}: {count[arch]} variants, {wrong} with problems, {most}"
    faults = [(row, problem) for row in compiled for problem in row.problems]
    for row, problem in faults[:MOST_FAULTS]:
        yield f"FAILED {row.kernel} [{row.variant}] sm_{row.arch}: {problem}"
    if len(faults) > MOST_FAULTS:
        yield f"and {len(faults) - MOST_FAULTS} more: --json PATH keeps them all"


SUITE = Suite(
    "audit",
    "registers, spills, shared memory and matrix instructions of every kernel variant, without a GPU",
    tasks,
    arguments,
    closing,
    apart=True,
)
