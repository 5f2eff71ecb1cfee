"""Compiles a kernel's variant ahead of time, without a GPU, and reads what the compiler made of it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastgan.errors import UserError, require
from fastgan.kernels.variant import Variant

SASS = {  # what we count -> how its machine instructions begin
    "wgmma": ("HGMMA", "QGMMA", "IGMMA"),
    "tcgen05": ("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA"),
    "mma": ("HMMA", "QMMA", "OMMA", "IMMA", "DMMA"),
    "tma": ("UTMA", "UBLK"),
    "async_copy": ("LDGSTS",),
    "atomic": ("ATOMG", "RED.", "REDG"),
    "local": ("LDL", "STL"),
}
PTX = {  # the same in PTX, where no disassembler is bundled
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"mma\.sync",
    "tma": r"cp\.async\.bulk|cp\.reduce\.async\.bulk",
    "async_copy": r"cp\.async\.c[ag]\.",
    "atomic": r"(?:atom|red)\.(?:global|relaxed|acq|rel)",
    "local": r"(?:ld|st)\.local",
}


def refuse_interpreter() -> None:
    """Raise a :class:`~fastgan.errors.UserError` where Triton is missing or kernels are interpreted, not compiled."""
    require("triton", why="compiling the kernels")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("TRITON_INTERPRET=1 leaves nothing to compile: unset it to audit the kernels")


def compile_variant(variant: Variant, arch: int) -> Any:
    """Compile for ``sm_<arch>`` as the launcher would: same types, folded constants and divisibility attributes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.fn.arg_names
    unknown = sorted({*variant.signature, *variant.constexprs, *variant.divisible} - set(names))
    missing = [name for name in names if name not in variant.signature and name not in variant.constexprs]
    if unknown or missing:
        raise ValueError(f"the variant does not fit its kernel's arguments: unknown {unknown}, not stated {missing}")
    signature = {name: "constexpr" if name in variant.constexprs else variant.signature[name] for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in sorted(variant.divisible)}
    source = ASTSource(variant.fn, signature, dict(variant.constexprs), attributes)
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "maxnreg": variant.register_cap,
    }
    with contextlib.redirect_stdout(io.StringIO()):  # a failing ptxas makes Triton print the whole kernel
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(kernel: Any, arch: int) -> dict[str, int]:
    """Return ``registers``, ``stack_bytes`` (stack frame and local memory) and ``spill_bytes`` of one thread."""
    with binary(kernel) as path:
        text = tool("cuobjdump", "-res-usage", str(path))
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    stack = usage["STACK"] + usage["LOCAL"]
    return {"registers": usage["REG"], "stack_bytes": stack, "spill_bytes": spills(kernel, arch) if stack else 0}


def spills(kernel: Any, arch: int) -> int:
    """Ask ptxas for the bytes of spill stores and loads: only it tells them from other local memory."""
    name = "ptxas-blackwell" if arch >= 100 else "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(kernel.asm["ptx"], encoding="utf-8")
        target = f"--gpu-name=sm_{arch}{'a' if arch >= 90 else ''}"
        text = tool(name, "-v", "-lineinfo", *register_level(), target, str(source), "-o", f"{source}.o")
    return sum(int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", text))


def register_level() -> list[str]:
    """Return the allocation option that this Triton gives to ptxas, so that the second compilation is the first."""
    from triton.backends.nvidia import compiler

    level = re.search(r"--regAllocOptLevel=\d+", Path(compiler.__file__).read_text(encoding="utf-8"))
    return [level[0]] if level else []


def instructions(kernel: Any) -> dict[str, int]:
    """Count the instructions that matter, in machine code, or in PTX where the disassembler is missing."""
    if not bundled("nvdisasm").exists():
        return {name: len(re.findall(pattern, kernel.asm["ptx"])) for name, pattern in PTX.items()}
    with binary(kernel) as path:
        text = tool("nvdisasm", "-c", "-ndf", str(path))
    counts: Counter[str] = Counter(re.findall(r"(?m)^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", text))
    return {
        name: sum(count for code, count in counts.items() if code.startswith(prefixes))
        for name, prefixes in SASS.items()
    }


def matrix_precisions(kernel: Any) -> set[str]:
    """Return how its ``tl.dot`` multiply: ``bf16``, ``f16``, ``tf32``, ``ieee`` (fp32 that no tensor core does), ..."""
    found = set()
    for line in kernel.asm["ttir"].splitlines():
        element = re.search(r" tt\.dot(?:_scaled)? .*?: tensor<(?:\d+x)+(\w+)", line)
        if element:
            precision = re.search(r"inputPrecision = (\w+)", line)
            found.add((precision[1] if precision else "ieee") if element[1] in ("f32", "f64") else element[1])
    return found


@contextlib.contextmanager
def binary(kernel: Any) -> Iterator[Path]:
    """Lay the kernel's cubin into a file for as long as a tool reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(kernel.asm["cubin"])
        yield path


def bundled(name: str) -> Path:
    """Return where Triton keeps one of NVIDIA's tools."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def tool(name: str, *arguments: str) -> str:
    """Run one of the tools that Triton brings along; returns all that it says."""
    done = subprocess.run([str(bundled(name)), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr
