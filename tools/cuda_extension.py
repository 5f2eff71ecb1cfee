"""Build the CUDA C++ extension from csrc/ into fastgan/ops/built/, or write down there why it is absent.

    python tools/cuda_extension.py [--build auto|0|1] [--out FOLDER] [--jobs N]

Needs nvcc (on the PATH, under CUDA_HOME or /usr/local/cuda, or from PyPI: the extra ``build``), g++, ninja, and the
headers of a torch, which may be a CPU build: the kernels include none of them, and the bindings only those of PyTorch's
stable ABI. What comes out has code for sm_80, 90a and 100a and PTX for what comes later, holds the CUDA runtime that it
needs, and goes with any Python and any torch from 2.11 on. setup.py calls this file; standard library only.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"
BUILT = ROOT / "fastgan" / "ops" / "built"
LIBRARY, ABSENT = "fastgan_cuda.so", "absent.txt"
ARCHITECTURES = ("80", "90a", "100a")
CODE = [f"arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
CODE += [f"arch=compute_{ARCHITECTURES[0]},code=compute_{ARCHITECTURES[0]}"]  # PTX for cards between and after them
REPORT = "report"  # how the file is called in which ptxas says what each kernel takes
OLDEST_TORCH = "0x020b000000000000"  # 2.11
NVCC_FLAGS = ("-std=c++17", "-O3", "--threads", "0", "-Xcompiler", "-fPIC", "-Xptxas", "-v")
BINDING_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", f"-fmacro-prefix-map={ROOT}/=")
BINDING_FLAGS += (f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}",)


class AbsentError(Exception):
    """Why the extension is not built, in one line."""


def find_nvcc() -> Path:
    """Return nvcc: the machine's own, or that of PyPI's wheels in this environment."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) / "bin" / "nvcc" for home in (*homes, "/usr/local/cuda") if home]
    on_path = shutil.which("nvcc")
    if on_path:
        places.insert(0, Path(on_path))
    for name in ("purelib", "platlib"):
        places += sorted(Path(sysconfig.get_path(name), "nvidia").glob("*/bin/nvcc"))
    for place in places:
        if os.access(place, os.X_OK):
            return place
    raise AbsentError("there is no nvcc: install CUDA's toolkit, or pip install 'fastgan[build]'")


def find_torch() -> Path:
    """Return the folder of an installed torch, without importing it; in an isolated build that of the environment."""
    places = [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        places.insert(0, Path(spec.origin).parent)
    for place in places:
        if (place / "include" / "torch" / "csrc" / "stable" / "library.h").exists():
            return place
    raise AbsentError("there is no torch of 2.11 or later with its headers: install it, then build again")


def find(program: str, mend: str) -> str:
    """Return where a program is, also one that pip installed beside this Python."""
    beside = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    found = shutil.which(program) or shutil.which(program, path=os.pathsep.join(beside))
    if found is None:
        raise AbsentError(f"there is no {program}: {mend}")
    return found


def ninja_file(nvcc: Path, compiler: str, torch: Path) -> str:
    """Return the rules of the build: each source by its own compiler, then one library."""
    depends = f"-I{SOURCES} -MD -MF $out.d -c $in -o $out"
    kernels = " ".join((*NVCC_FLAGS, *(f"-gencode={code}" for code in CODE)))
    bindings = " ".join((*BINDING_FLAGS, f"-isystem {torch / 'include'}"))
    runtime = f"-cudart static -cudadevrt none -L{nvcc.resolve().parents[1] / 'lib'}"  # where PyPI's wheels have it
    torches = f"-L{torch / 'lib'} -Xlinker --no-as-needed -ltorch -ltorch_cpu"  # CUDA builds: libtorch_cuda with them
    lines = [
        "rule kernels",
        f"  command = {nvcc} {kernels} {depends} > $out.{REPORT} 2>&1 || (cat $out.{REPORT}; false)",
        "  depfile = $out.d",
        "rule bindings",
        f"  command = {compiler} {bindings} {depends}",
        "  depfile = $out.d",
        "rule library",
        f"  command = {nvcc} -shared {runtime} -o $out $in {torches} -ldl",
    ]
    objects = []
    for source in sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cpp")]):
        objects.append(f"{source.name}.o")
        lines.append(f"build {objects[-1]}: {'kernels' if source.suffix == '.cu' else 'bindings'} {source}")
    return "\n".join([*lines, f"build {LIBRARY}: library {' '.join(objects)}", ""])


def build(out: Path, jobs: int = 0, work: Path | None = None) -> Path:
    """Build the library into a folder and return it.

    Args:
        jobs: at a time; 0: as ninja thinks best.
        work: where objects are kept for the next build; None: nowhere.

    Raises:
        AbsentError: where something that it takes is missing, or does not compile.
    """
    if not sys.platform.startswith("linux"):
        raise AbsentError(f"it is built on Linux only, and this is {sys.platform}")
    compiler = find("g++", "install a C++ compiler")
    ninja = find("ninja", "pip install ninja")
    rules = ninja_file(find_nvcc(), compiler, find_torch())
    with tempfile.TemporaryDirectory(prefix="fastgan-build-") as scratch:
        folder = work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(rules, encoding="utf-8")
        command = [ninja, "-C", str(folder), *([f"-j{jobs}"] if jobs else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in done.stdout.splitlines() if re.search("error ?:|undefined|cannot find", line)]
            raise AbsentError(f"it does not compile: {(said or done.stdout.splitlines() or [done.stderr])[0].strip()}")
        out.mkdir(parents=True, exist_ok=True)
        unfinished = out / f"{LIBRARY}.{os.getpid()}"
        shutil.copyfile(folder / LIBRARY, unfinished)
        return unfinished.replace(out / LIBRARY)


def build_or_say(out: Path, how: str | None = None, jobs: int = 0) -> bool:
    """Build, or write into ``out`` why not; whether there is a library now.

    Args:
        how: ``auto``, ``0`` (do not) or ``1`` (or raise); None: what FASTGAN_BUILD_CUDA says, else ``auto``.
    """
    how = how or os.environ.get("FASTGAN_BUILD_CUDA") or "auto"
    if how not in ("auto", "0", "1"):
        raise SystemExit(f"fastgan: FASTGAN_BUILD_CUDA is auto, 0 or 1, not {how!r}")
    try:
        if how == "0":
            raise AbsentError("it was not built: FASTGAN_BUILD_CUDA=0")
        build(out, jobs)
    except AbsentError as why:
        if how == "1":
            raise SystemExit(f"fastgan: FASTGAN_BUILD_CUDA=1 asks for the CUDA C++ extension, but {why}") from None
        out.mkdir(parents=True, exist_ok=True)
        (out / LIBRARY).unlink(missing_ok=True)
        (out / ABSENT).write_text(f"{why}\n", encoding="utf-8")
        return False
    (out / ABSENT).unlink(missing_ok=True)
    return True


def main() -> int:
    """Exit codes: 0 built, 1 not built, with the reason printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", choices=("auto", "0", "1"), help="else what FASTGAN_BUILD_CUDA says, else auto")
    parser.add_argument("--out", type=Path, default=BUILT, help="the folder to build into")
    parser.add_argument("--jobs", type=int, default=0, help="compilations at a time")
    options = parser.parse_args()
    if build_or_say(options.out, options.build, options.jobs):
        print(f"fastgan: built {options.out / LIBRARY}")
        return 0
    print(f"fastgan: no CUDA C++ extension: {(options.out / ABSENT).read_text(encoding='utf-8').strip()}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
