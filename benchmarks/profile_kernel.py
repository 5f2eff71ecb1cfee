"""What a kernel was compiled to, without a GPU: registers, shared memory, occupancy, spills, instructions, its code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastgan.benchmarks import audit
from fastgan.benchmarks.cards import CARDS
from fastgan.benchmarks.compiled import binary, bundled, compile_variant, matrix_precisions, refuse_interpreter, tool
from fastgan.benchmarks.record import Compiled
from fastgan.benchmarks.table import NOTHING, number, table
from fastgan.errors import UserError, unknown
from fastgan.kernels.variant import Variant

FORMAT = "fastgan-kernel-profile/1"
MIX = {  # column -> how machine instructions begin that count in it
    "HGMMA": ("HGMMA", "QGMMA", "IGMMA"),
    "UTCMMA": ("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA"),
    "HMMA": ("HMMA", "QMMA", "OMMA", "IMMA", "DMMA"),
    "FFMA": ("FFMA",),
    "MUFU": ("MUFU",),
    "LDGSTS": ("LDGSTS",),
    "TMA": ("UTMA", "UBLK"),
    "LDG": ("LDG.", "LD."),
    "STG": ("STG", "ST."),
    "LDS": ("LDS", "LDSM"),
    "STS": ("STS", "STSM"),
    "atomics": ("ATOMG", "ATOM.", "RED.", "REDG"),
    "local": ("LDL", "STL"),
    "barriers": ("BAR", "SYNCS"),
}
OPCODE = re.compile(r"(?m)^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)")


@dataclass
class Form:
    """One compiled form of a kernel."""

    compiled: Compiled
    occupancy: float  # the share of a multiprocessor's warps that its blocks fill
    precisions: list[str]  # how its matrix products multiply
    mix: dict[str, int]  # machine instructions by kind; empty where no disassembler is at hand
    instructions: int  # all of them


def architecture(text: str | None) -> int:
    """Return the compute capability that ``sm_90`` or ``90`` names; None: this machine's GPU's, else 90."""
    import torch

    if text is None:
        own = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
        return own[0] * 10 + own[1] if own[0] * 10 + own[1] in CARDS else 90
    digits = text.strip().lower().removeprefix("sm_").removesuffix("a")
    if not digits.isdigit() or int(digits) not in CARDS:
        raise unknown("architecture", text, (f"sm_{arch}" for arch in CARDS))
    return int(digits)


def variants(name: str, arch: int, text: str | None = None) -> list[Variant]:
    """Return the forms of a kernel, by its name or its file's, whose labels have every word of ``text``."""
    refuse_interpreter()
    if name.endswith(".py"):
        found = [variant for file in audit.kernel_files([name]) for variant in audit.variants_of(file, arch)]
    else:
        every = [(file, v) for file in audit.kernel_files(None) for v in audit.variants_of(file, arch)]
        every.sort(key=lambda pair: not pair[1].kernel.startswith(pair[0].removesuffix("_forms")))  # its own file first
        found = [v for file, v in every if name in (v.kernel, file, home(v))]
        if not found:
            raise unknown("kernel", name, {known for file, v in every for known in (v.kernel, file, home(v))})
    words = (text or "").split()
    chosen = [variant for variant in found if all(word in variant.label for word in words)]
    if not chosen:
        some = "; ".join(dict.fromkeys(variant.label for variant in found[:4]))
        raise UserError(f"no form of {name} for sm_{arch} has {text!r} in its name: they are called {some}, ...")
    return chosen


def home(variant: Variant) -> str:
    """Return the name of the file that a kernel is written in."""
    return str(variant.fn.fn.__module__).rpartition(".")[2]


def examine(variant: Variant, arch: int) -> tuple[Form, Any]:
    """Compile a form and read what became of it; with it the compiled kernel."""
    kernel = compile_variant(variant, arch)
    compiled = audit.describe(variant, arch, kernel)
    precisions = matrix_precisions(kernel)
    compiled.problems += audit.problems(variant, compiled, precisions)
    codes = Counter(OPCODE.findall(sass(kernel))) if bundled("nvdisasm").exists() else Counter[str]()
    mix = {
        column: sum(count for code, count in codes.items() if f"{code}.".startswith(prefixes))
        for column, prefixes in MIX.items()
    }
    filled = (compiled.blocks_per_sm or 0) * (compiled.warps or 0) / CARDS[arch].warps
    return Form(compiled, filled, sorted(precisions), mix if codes else {}, codes.total()), kernel


def sass(kernel: Any) -> str:
    """Return a kernel's machine code as text. Raises UserError where Triton came without the disassembler."""
    if not bundled("nvdisasm").exists():
        raise UserError("this Triton came without nvdisasm, which shows machine code: ask for --ptx instead")
    with binary(kernel) as path:
        return tool("nvdisasm", "-c", "-ndf", str(path))


def code(variant: Variant, arch: int, kind: str) -> str:
    """Return the ``ptx`` or ``sass`` of a form, what it is in its first line."""
    kernel = compile_variant(variant, arch)
    text = kernel.asm["ptx"] if kind == "ptx" else sass(kernel)
    return f"// {variant.kernel} [{variant.label}] sm_{arch}, {kind}\n{text.rstrip()}\n"


def count(column: str) -> Callable[[Form], str]:
    """Return the column of one kind of instruction."""
    return lambda form: str(form.mix[column]) if form.mix.get(column) else NOTHING


COLUMNS: dict[str, Callable[[Form], str]] = {
    "kernel": lambda form: form.compiled.kernel,
    "variant": lambda form: form.compiled.variant,
    "warps": lambda form: number(form.compiled.warps),
    "registers": lambda form: f"{form.compiled.registers}/{form.compiled.max_registers}",
    "shared B": lambda form: number(form.compiled.shared_bytes),
    "spill B": lambda form: number(form.compiled.spill_bytes),
    "blocks/SM": lambda form: number(form.compiled.blocks_per_sm),
    "occupancy": lambda form: f"{form.occupancy:.0%}",
    "limited by": lambda form: form.compiled.limiter or NOTHING,
    "products": lambda form: ", ".join(form.precisions),
    **{column: count(column) for column in MIX},
    "all": lambda form: number(form.instructions) if form.instructions else NOTHING,
    "verdict": lambda form: "ok" if form.compiled.passed else "; ".join(form.compiled.problems),
}


def render(forms: Sequence[Form], left: int) -> Iterator[str]:
    """Yield the lines of a table, and how many forms it leaves out."""
    yield table(COLUMNS, forms)
    if left:
        yield f"{len(forms)} of {len(forms) + left} forms: --most N shows more, --variant TEXT chooses"


def body(forms: Sequence[Form], name: str, arch: int, left: int) -> dict[str, Any]:
    """Return forms as plain JSON values."""
    rows = [
        {
            **asdict(form.compiled),
            "occupancy": form.occupancy,
            "products": form.precisions,
            "mix": form.mix,
            "all_instructions": form.instructions,
        }
        for form in forms
    ]
    return {"format": FORMAT, "kernel": name, "arch": f"sm_{arch}", "left_out": left, "forms": rows}
