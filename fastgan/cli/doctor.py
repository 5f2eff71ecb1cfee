"""``fastgan doctor``: what this machine has, and which backend each op takes here and why. Prints, changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fastgan import __version__
from fastgan.cli.output import say
from fastgan.errors import UserError
from fastgan.ops import backend, extension, mlp_step_launch, mlp_step_measured

LIBRARIES = (
    "numpy",
    "tyro",
    "tqdm",
    "Pillow",
    "PyYAML",
    "safetensors",
    "scipy",
    "matplotlib",
    "torchmetrics",
    "tensorboard",
    "onnx",
    "onnxruntime",
    "onnxscript",
)


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    if arguments and arguments[0] in ("-h", "--help"):
        say("usage: fastgan doctor\n\nShow GPU, driver, libraries, and which backend each op takes here and why.")
        return 0
    if arguments:
        raise UserError(f"fastgan doctor takes no arguments, not {' '.join(arguments)}")
    for title, facts in (("machine", _machine()), ("libraries", _libraries()), ("backends", _backends())):
        say("\n".join([title, *(f"  {name:21} {fact}" for name, fact in facts)]))
    return 0


def _machine() -> Iterator[tuple[str, str]]:
    yield "fastgan", f"{__version__} in {Path(__file__).resolve().parents[1]}"
    yield "python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            yield f"gpu {index}", f"{properties.name}, sm_{properties.major}{properties.minor}, {memory}"
    else:
        built = (
            f"torch is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "this torch is built without CUDA"
        )
        yield "gpu", f"none that PyTorch can use ({built})"
    yield "driver", _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    yield "nvcc", _output(["nvcc", "--version"])
    for name in ("FASTGAN_BACKEND", "FASTGAN_DATA", "FASTGAN_CACHE", "FASTGAN_TIMEOUT", "TRITON_INTERPRET"):
        yield name, os.environ.get(name) or "not set"


def _libraries() -> Iterator[tuple[str, str]]:
    yield "torch", torch.__version__
    yield "triton", _version("triton")
    for name in LIBRARIES:
        yield name.lower(), _version(name)
    yield "torch.distributed", _distributed()
    why = extension.absent()
    yield (
        "csrc",
        f"absent: {why}"
        if why
        else f"{extension.LIBRARY}: {', '.join(extension.OPS)} under the backend 'cuda'; mlp_step for one_launch",
    )


def _distributed() -> str:
    """By what processes can train together here."""
    if not torch.distributed.is_available():
        return "not built: runs have one process"
    found = [name for name in ("nccl", "gloo") if getattr(torch.distributed, f"is_{name}_available")()]
    return f"{' and '.join(found) or 'no backend'}: torchrun -m fastgan train, see docs/scaling.md"


def _backends() -> Iterator[tuple[str, str]]:
    yield "one launch cpu", _one_launch(torch.device("cpu"))
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        for choice in backend.explain(torch.device(device)):
            yield f"{choice.op} {device}", f"{choice.backend}: {choice.why}"
    for index in range(torch.cuda.device_count()):
        yield f"one launch cuda:{index}", _one_launch(torch.device("cuda", index))
        yield f"tiles cuda:{index}", _tiles(torch.cuda.get_device_name(index))


def _tiles(name: str) -> str:
    """Say where the choice of tiles on a card comes from."""
    from fastgan.kernels import problem, tables

    gpu = problem.slug(name)
    for path in (tables.local_path(gpu), tables.PACKAGED / f"{gpu}.json"):
        if path.is_file():
            return f"as measured: {path}"
    return f"by estimate: there is no tuned table for {gpu}; `fastgan bench tune` writes one"


def _one_launch(device: torch.device) -> str:
    """Say whether ``one_launch=auto`` may take a card, for fully connected GANs in bf16."""
    why = mlp_step_launch.refusal(device)
    return f"not taken: {why}" if why else mlp_step_measured.told(torch.cuda.get_device_name(device))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return f"not found ({command[0]} is not on the PATH)"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} does not answer ({error})"
    text = (done.stdout or done.stderr).strip().splitlines()
    return text[-1] if text and done.returncode == 0 else f"{command[0]} failed: {' '.join(text) or done.returncode}"
