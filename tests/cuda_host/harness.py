"""Runs csrc/*.cu on the CPU: builds a file once for each content, calls its launchers on tensors, says what went wrong.

    kernels = build("linear_act.cu")
    status = kernels.call("fastgan_linear_act_forward", x, weight, None, y, rows, 0.2, seed=3)

Tensors are passed as addresses and changed in place, whatever their strides; ints as int64_t, floats as float, None as
a null pointer. HostError carries what the shim, AddressSanitizer or UndefinedBehaviorSanitizer had to say.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / ".pytest_cache" / "kept" / "cuda_host"
FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Werror", "-fno-omit-frame-pointer")
FLAGS += ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{HERE}", f"-I{ROOT / 'csrc'}")
SECONDS = 120  # that one call may take


class HostError(AssertionError):
    """A kernel did what a GPU would not have forgiven, or its process ended otherwise."""


def build(*sources: str | Path) -> Kernels:
    """Compile .cu files, named from csrc/ or by a path, with the shim; the same content is compiled once."""
    paths = [(ROOT / "csrc" / source).resolve() for source in sources]
    compiler, flags = _compiler(), [*FLAGS]
    return Kernels(
        _link([_object(compiler, path, flags) for path in (HERE / "cuda_host.cpp", *paths)], compiler, flags)
    )


def build_extension() -> Path:
    """Build the whole extension for the host, without sanitizers: its ops then run on tensors of the CPU."""
    torch_home = Path(torch.__file__).parent
    flags = [
        "-std=c++20",
        "-O1",
        "-g0",
        "-fPIC",
        f"-I{HERE}",
        f"-I{ROOT / 'csrc'}",
        f"-isystem{torch_home / 'include'}",
    ]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DFASTGAN_KEY=CPU", "-DFASTGAN_HOST"]
    compiler = _compiler()
    sources = [HERE / "cuda_host.cpp", *sorted((ROOT / "csrc").glob("*.c*"))]
    objects = [_object(compiler, path, flags) for path in sources if path.suffix != ".cuh"]
    return _link(objects, compiler, [f"-L{torch_home / 'lib'}", "-ltorch", "-ltorch_cpu"])


class Kernels:
    """A library of launchers in a process of its own, which a fault ends and the next call starts anew."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self._worker: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the process

    def call(self, function: str, *arguments: torch.Tensor | float | None, seed: int = 0) -> int:
        """Call an extern "C" launcher and return its error code. ``seed``: whose turn it is where threads wait."""
        memory: dict[int, torch.UntypedStorage] = {}
        plain = []
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                storage = argument.untyped_storage()
                memory[storage.data_ptr()] = storage
                which = list(memory).index(storage.data_ptr())
                plain.append(("memory", which, argument.storage_offset() * argument.element_size()))
            else:
                plain.append(argument)
        contents = [bytes(torch.tensor([], dtype=torch.uint8).set_(block).numpy()) for block in memory.values()]
        status, results = self._ask((function, plain, contents, seed))
        for block, result in zip(memory.values(), results, strict=True):
            if result:
                block.copy_(torch.frombuffer(bytearray(result), dtype=torch.uint8).untyped_storage())
        return status

    def close(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None

    def _ask(self, request: object) -> tuple[int, list[bytes]]:
        worker = self._worker = self._worker or self._start()
        assert worker.stdin is not None and worker.stdout is not None
        watch = threading.Timer(SECONDS, worker.kill)
        watch.start()
        try:
            pickle.dump(request, worker.stdin)
            worker.stdin.flush()
            return pickle.load(worker.stdout)  # noqa: S301 -- our own child
        except (EOFError, OSError, pickle.UnpicklingError):
            code = worker.wait()
            self.close()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")
            raise HostError(f"the kernel's process ended with {code}\n{said}") from None
        finally:
            watch.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        self._said.seek(0)
        self._said.truncate()
        settings = {"LD_PRELOAD": str(_sanitizer("g++")), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
        settings |= {"UBSAN_OPTIONS": "print_stacktrace=1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "worker.py"), str(self.library)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=os.environ | settings
        )


def _compiler() -> str:
    compiler = shutil.which("g++")
    if compiler is None or _sanitizer(compiler) is None:
        pytest.skip("the CUDA C++ kernels run on the CPU by g++ and its libasan, which are not here")
    return compiler


@functools.cache
def _sanitizer(compiler: str) -> Path | None:
    found = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    path = Path(found.stdout.strip())
    return path if path.is_absolute() else None


def _object(compiler: str, source: Path, flags: list[str]) -> Path:
    """Compile one file, unless what it says after the preprocessor was compiled before."""
    command = [compiler, *flags, "-x", "c++", str(source)]
    text = _run([*command, "-E"])
    name = hashlib.sha256(repr(flags).encode() + text).hexdigest()[:16]
    return _made(KEPT / f"{source.stem}-{name}.o", [*command, "-c"])


def _link(objects: list[Path], compiler: str, flags: list[str]) -> Path:
    name = hashlib.sha256(repr([path.name for path in objects]).encode()).hexdigest()[:16]
    return _made(KEPT / f"{name}.so", [compiler, "-shared", *map(str, objects), *flags])


def _made(place: Path, command: list[str]) -> Path:
    """Have the command write ``place``, whole or not at all, whoever else is at it."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_suffix(f".{os.getpid()}")
        _run([*command, "-o", str(unfinished)])
        unfinished.replace(place)
    return place


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr.decode(errors='replace')}"
    return done.stdout
