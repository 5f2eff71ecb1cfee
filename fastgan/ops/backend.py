"""Which implementation an op takes: chosen by name, device and dtype, with the reason in words.

``reference`` is plain PyTorch and the definition of right, ``triton`` our kernels, ``cuda`` the CUDA C++ extension for
what it has and ``auto`` for the rest, as one warning says. ``auto`` takes the kernels on NVIDIA GPUs of compute
capability 8.0 or later and the reference everywhere else. A GPU that has to go by the reference is told so by one
warning for each reason; float64 goes by the reference by design.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from dataclasses import dataclass
from types import TracebackType

import torch

from fastgan.errors import UserError, unknown
from fastgan.ops import extension
from fastgan.ops.registration import known_when_compiled

BACKENDS = ("auto", "reference", "triton", "cuda")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_CAPABILITY = (8, 0)

_requested: str = os.environ.get("FASTGAN_BACKEND", "auto")  # a plain global: torch.compile guards on it
_ops: list[str] = []
_choices: dict[tuple[str, str, torch.device, torch.dtype], Choice] = {}
_warned: set[str] = set()


@dataclass(frozen=True)
class Choice:
    """What an op takes on a device for a dtype, and why. ``fallback``: not what the device could do."""

    op: str
    dtype: torch.dtype
    backend: str
    why: str
    fallback: bool = False


class _Switch:
    """Has set the backend already; as a context manager it also puts the former one back."""

    def __init__(self, name: str) -> None:
        global _requested
        self.name, self.former, _requested = name, _requested, name

    def __enter__(self) -> _Switch:
        global _requested
        _requested = self.name  # it may have been left before
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _requested
        _requested = self.former


def backend(name: str) -> _Switch:
    """Set the backend of every op in this process, or only inside a ``with`` block: ``with backend("reference"):``.

    Args:
        name: ``auto``, ``reference``, ``triton`` or ``cuda``. At the start it is the environment's FASTGAN_BACKEND,
            else ``auto``.

    Raises:
        UserError: for an unknown name, and for ``cuda`` where the extension is not built, with the reason. What a
            device cannot do is found out when an op is called.
    """
    return _Switch(_checked(name))


def current_backend() -> str:
    """Return the name that was set, ``auto`` included."""
    return _checked(_requested)


def choose(op: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """Return what the op takes for tensors of that device and dtype under the backend that is set. Cheap."""
    return _decide(_requested, op, device, dtype)


def by_reference(op: str, tensor: torch.Tensor) -> bool:
    """Whether the op goes by plain PyTorch for operands like this one. Costs next to nothing on the CPU."""
    if _requested == "auto" and not tensor.is_cuda:
        return True
    return choose(op, tensor.device, tensor.dtype).backend == "reference"


def only_ours() -> bool:
    """Whether our kernels were asked for by name: then no product goes to the library where that is faster."""
    return _requested == "triton"


def by_extension(op: str, rows: torch.Tensor) -> bool:
    """Whether the op goes by the CUDA C++ extension for a matrix like this one. Costs nothing under other backends."""
    if _requested != "cuda" or rows.shape[0] > extension.MOST_ROWS:
        return False
    return choose(op, rows.device, rows.dtype).backend == "cuda"


def explain(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Choice]:
    """Return what each op would take on that device and why; ``backend`` is "none" where a call would raise."""
    choices = []
    for op in _ops:
        try:
            choices.append(_choice(_requested, op, device, dtype))
        except UserError as error:
            choices.append(Choice(op, dtype, "none", str(error)))
    return choices


def register(op: str) -> str:
    """Add an op to those that ``explain`` lists."""
    _ops.append(op)
    return op


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    if name == "cuda" and (why := extension.absent()) is not None:
        raise UserError(f"backend 'cuda': there is no CUDA C++ extension: {why}; use 'triton' or 'auto'")
    return name


@known_when_compiled
def _decide(requested: str, op: str, device: torch.device, dtype: torch.dtype) -> Choice:
    key = (requested, op, device, dtype)
    choice = _choices.get(key)
    if choice is None:
        choice = _choices[key] = _choice(requested, op, device, dtype)
        if choice.fallback and choice.why not in _warned:
            _warned.add(choice.why)
            warnings.warn(f"fastgan runs plain PyTorch on {device}: {choice.why}", RuntimeWarning, stacklevel=4)
        elif requested == "cuda" and choice.backend != "cuda" and extension.LACKS not in _warned:
            _warned.add(extension.LACKS)
            warnings.warn(f"backend 'cuda': {extension.LACKS}", RuntimeWarning, stacklevel=4)
    return choice


def _choice(requested: str, op: str, device: torch.device, dtype: torch.dtype) -> Choice:
    _checked(requested)
    if requested == "reference":
        return Choice(op, dtype, "reference", "it was asked for")
    if dtype not in KERNEL_DTYPES:
        return Choice(op, dtype, "reference", f"{str(dtype).removeprefix('torch.')} goes by the reference")
    if requested == "cuda":
        return _by_extension(op, device, dtype)
    if device.type == "cuda" and torch.cuda.is_available():
        return _on_gpu(requested, op, device, dtype)
    if device.type in ("cuda", "meta"):  # a tensor of shapes only
        return Choice(op, dtype, "reference", f"no {device.type} device to run on")
    if requested == "auto":
        return Choice(op, dtype, "reference", f"{device.type} is not an NVIDIA GPU")
    if device.type != "cpu" or not _interpreted():
        mend = "use backend 'auto', or set TRITON_INTERPRET=1 before Python starts to interpret the kernels on the CPU"
        raise UserError(f"backend 'triton' needs a CUDA device, and this tensor is on {device.type!r}: {mend}")
    if dtype == torch.bfloat16:
        return Choice(op, dtype, "reference", "Triton's interpreter gets bfloat16 wrong")
    return Choice(op, dtype, "triton", "the kernels are interpreted on the CPU (TRITON_INTERPRET)")


def _by_extension(op: str, device: torch.device, dtype: torch.dtype) -> Choice:
    rest = _choice("auto", op, device, dtype)
    if rest.fallback or not extension.runs_on(device):  # an older GPU, or no GPU
        return rest
    if extension.has(op, dtype):
        return Choice(op, dtype, "cuda", f"the CUDA C++ extension was asked for: {extension.LIBRARY}")
    return Choice(op, dtype, rest.backend, f"the CUDA C++ extension lacks it; {rest.why}")


def _on_gpu(requested: str, op: str, device: torch.device, dtype: torch.dtype) -> Choice:
    capability = torch.cuda.get_device_capability(device)
    card = f"{torch.cuda.get_device_name(device)}, compute capability {capability[0]}.{capability[1]}"
    if torch.version.hip is not None or capability < LEAST_CAPABILITY:
        missing = f"the kernels need an NVIDIA GPU of compute capability 8.0 or later, and this is {card}"
    elif _triton() is None:
        missing = "the package triton is not installed: pip install 'triton>=3.6'"
    else:
        return Choice(op, dtype, "triton", f"{card}, triton {_triton()}")
    if requested == "triton":
        raise UserError(f"backend 'triton': {missing}")
    return Choice(op, dtype, "reference", missing, fallback=True)


@functools.cache
def _triton() -> str | None:
    try:
        return str(importlib.import_module("triton").__version__)
    except ImportError:
        return None


def _interpreted() -> bool:
    if _triton() is None:
        return False
    return bool(importlib.import_module("triton.knobs").runtime.interpret)
