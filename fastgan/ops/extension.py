"""The CUDA C++ extension, built from csrc/: loaded when it is first asked for; where there is none, why.

It is taken for what it has (``OPS``) under ``fastgan.backend("cuda")``. One library serves torch 2.11 and later: its
ops are ``torch.ops.fastgan_cuda.*`` and know nothing of autograd, which is ``fastgan.ops``'s.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastgan.ops import activation as act

if TYPE_CHECKING:
    from fastgan.ops.mlp_step import Operands

BUILT = Path(__file__).with_name("built")
LIBRARY, ABSENT = BUILT / "fastgan_cuda.so", BUILT / "absent.txt"  # tools/cuda_extension.py writes one of them
OPS = ("linear_act",)
REGISTERED = ("linear_act", "linear_act_backward", "mlp_step", "mlp_step_members")
DTYPES = (torch.bfloat16, torch.float16)
LACKS = "the CUDA C++ extension has linear_act in bf16 and fp16; all else goes as under 'auto'"
MOST_ROWS = 512  # of a batch: beyond, Triton's tiles have enough to do

_NUMBERS = {name: number for number, name in enumerate(act.ACTIVATIONS)}  # csrc/activation.cuh has the same order
_current_device: Any = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)


@functools.cache
def absent() -> str | None:
    """Why the extension cannot be used; None where it is loaded now."""
    if not LIBRARY.is_file():
        mend = "python tools/cuda_extension.py builds it in a checkout"
        why = ABSENT.read_text(encoding="utf-8").strip() if ABSENT.is_file() else "this package was built without it"
        return f"{why} ({mend})"
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"{LIBRARY} does not load: {str(error).splitlines()[0]}"
    for name in REGISTERED:  # they have no autograd, and nothing warns of it
        _fall_through().impl(name, torch.library.fallthrough_kernel)
    return None


def has(op: str, dtype: torch.dtype) -> bool:
    """Whether the extension, where it is loaded, has the op for that dtype."""
    return op in OPS and dtype in DTYPES


def runs_on(device: torch.device) -> bool:
    """Whether it was built for such devices: GPUs, or, for tests, the CPU."""
    key = {"cuda": "CUDA", "cpu": "CPU"}.get(device.type, "")
    return bool(key) and torch._C._dispatch_has_kernel_for_dispatch_key("fastgan_cuda::linear_act", key)


def linear_act(x: Tensor, w: Tensor, bias: Tensor | None, activation: str, slope: float) -> Tensor:
    """Return phi(x [M, K] w [N, K]^T + bias [N]), of one 16-bit dtype, by any strides; slope >= 0."""
    bias = None if bias is None else bias.contiguous()
    return _on_device_of(x, torch.ops.fastgan_cuda.linear_act.default, x, w, bias, _NUMBERS[activation], slope)


def linear_act_backward(
    gy: Tensor,
    saved: Tensor | None,
    x: Tensor | None,
    w: Tensor | None,
    gw: Tensor | None,
    gb: Tensor | None,
    activation: str,
    slope: float,
) -> Tensor:
    """Return g w [M, K] where w is given, g being gy [M, N] * phi'(saved), and write g^T x to gw [N, K], g's sum to gb.

    gw and gb are contiguous, in the operands' dtype or fp32; gb only with gw, and gw with x. ``saved`` is contiguous.
    """
    call = torch.ops.fastgan_cuda.linear_act_backward.default
    return _on_device_of(gy, call, gy, saved, x, w, gw, gb, _NUMBERS[activation], slope)


def mlp_step(operands: Operands, barrier: Tensor, blocks: int, iterations: int) -> None:
    """Perform iterations of one GAN by so many blocks (0: as many as are resident); ``barrier``: one int32, 0 once."""
    *tables, _, panel_rows = operands
    call = torch.ops.fastgan_cuda.mlp_step.default
    _on_device_of(barrier, call, *tables, barrier, panel_rows, blocks, iterations)


def mlp_step_members(programs: Tensor, widths: tuple[int, int], panel_rows: int, blocks: int, iterations: int) -> None:
    """Perform iterations of many GANs, each by one block; ``programs`` (members, 7): csrc/mlp_step_table.cuh."""
    call = torch.ops.fastgan_cuda.mlp_step_members.default
    _on_device_of(programs, call, programs, *widths, panel_rows, blocks, iterations)


def _on_device_of(operand: Tensor, call: Any, *arguments: object) -> Any:
    device = operand.get_device()
    if device < 0 or device == _current_device():
        return call(*arguments)
    with torch.cuda.device(device):
        return call(*arguments)


@functools.cache
def _fall_through() -> torch.library.Library:
    return torch.library.Library("fastgan_cuda", "IMPL", "Autograd")
