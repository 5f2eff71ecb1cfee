"""The whole extension on the CPU: a program of its own, since a process can load one library of these ops only.

Its argument is the library that was compiled for the host, by tests/cuda_host/harness.py.
"""

import mmap
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

import fastgan
from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops import backend, extension, linear_act

MAP_NORESERVE = 0x4000  # of Linux; Python has the name from 3.13 on
PHI = ("none", "relu", "leaky_relu", "tanh", "sigmoid")


def operands(dtype: torch.dtype, *batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(batch))
    sizes = (*batch, 24), (40, 24), (40,), (*batch, 40)
    return [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes]


def both_orders(x: Tensor, w: Tensor, b: Tensor, gy: Tensor, activation: str) -> list[Tensor]:
    """The output, its gradients, and the gradients of a penalty on the input's gradient."""
    y = linear_act(x, w, b, activation=activation)
    first = torch.autograd.grad(y, (x, w, b), gy, create_graph=True)
    second = torch.autograd.grad(first[0].float().square().sum() + first[1].float().square().sum(), (x, w, gy))
    return [part.detach() for part in (y, *first, *second)]


def compare() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for at, activation in enumerate(PHI):
            case = operands(dtype, *((5,), (2, 3))[at % 2])
            plain = both_orders(*case, activation)
            exact = both_orders(*[part.detach().double().requires_grad_() for part in case], activation)
            with fastgan.backend("cuda"), Poisoned():
                ours = both_orders(*case, activation)
            for place, (got, base, wanted) in enumerate(zip(ours, plain, exact, strict=True)):
                flat = [part.flatten(0, -2) if part.dim() > 2 else part for part in (got, base, wanted)]
                slack = 8 if place > 3 else 1  # a second gradient goes through first ones that were rounded
                why = check(*flat, ulp=slack * torch.finfo(dtype).eps).why
                assert why is None, (dtype, activation, place, why)


def ask_for_some() -> None:
    x, w, b, gy = operands(torch.bfloat16, 7)
    wanted = torch.autograd.grad(linear_act(x, w, b, activation="tanh"), (x, w, b), gy)
    with fastgan.backend("cuda"):
        for at, leaf in enumerate((x, w, b)):
            y = linear_act(x, w, b, activation="tanh")
            (got,) = torch.autograd.grad(y, (leaf,), gy)
            torch.testing.assert_close(got, wanted[at], rtol=0.05, atol=0.05)
        y = linear_act(x, w, b)
        (gx,) = torch.autograd.grad(y.sum(), (x,))  # a gradient that is one number, of stride 0
        assert gx.shape == x.shape and torch.isfinite(gx).all()
        square = torch.randn(16, 16).bfloat16().requires_grad_()
        (twice,) = torch.autograd.grad(linear_act(square, square, activation="none").sum(), (square,))
        both = 2 * square.detach().float().sum(0).expand(16, 16)
        torch.testing.assert_close(twice.float(), both, rtol=0.05, atol=0.1)
        assert linear_act(x[:0], w, b).shape == (0, 40)
        torch.testing.assert_close(linear_act(x[:, :0], w[:, :0], b, activation="none"), b.expand(7, 40))


def autocast() -> None:
    x, w, b = (part.detach().requires_grad_() for part in operands(torch.float32, 9)[:3])
    x = x.detach().bfloat16().requires_grad_()  # fp32 would go by the reference here, as it does on any CPU
    with fastgan.backend("cuda"), torch.autocast("cpu", torch.bfloat16):
        y = linear_act(x, w, b)
        gx, gw, gb = torch.autograd.grad(y.float().sum(), (x, w, b))
    assert (y.dtype, gx.dtype, gw.dtype, gb.dtype) == (*(torch.bfloat16,) * 2, *(torch.float32,) * 2)
    g = (y.detach() > 0).float() * 0.8 + 0.2
    torch.testing.assert_close(gw, g.bfloat16().float().t() @ x.detach().float(), rtol=1e-5, atol=1e-5)


def compiled_and_warned() -> None:
    x, w, b, _ = (part.detach() for part in operands(torch.bfloat16, 5))
    with warnings.catch_warnings(record=True) as seen, fastgan.backend("cuda"):
        warnings.simplefilter("always")
        direct = linear_act(x, w, b)
        compiled = torch.compile(lambda x: linear_act(x, w, b), fullgraph=True, backend="aot_eager")(x)
        assert torch.equal(direct, compiled)
        for _ in range(2):
            linear_act(x.float(), w.float(), b.float())
        assert backend.choose("linear_act", torch.device("cpu"), torch.bfloat16).backend == "cuda"
        assert backend.choose("linear_act", torch.device("cpu"), torch.float32).backend == "reference"
    ours = [str(warning.message) for warning in seen if "CUDA C++" in str(warning.message)]
    assert len(ours) == 1 and "linear_act in bf16 and fp16" in ours[0], ours


def far_apart() -> None:
    """Rows, and terms, that lie more than 2^31 elements apart, in memory of which only they are touched."""
    step, rows = 1_200_000_011, 3
    room = mmap.mmap(-1, 2 * (rows * step + 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    whole = torch.frombuffer(room, dtype=torch.bfloat16)
    w, gy = torch.randn(24, 16).bfloat16(), torch.randn(rows, 24).bfloat16()
    for at, strides in enumerate(((step, 1), (step, 2), (1, step))):
        shape = (rows, 16) if strides[1] != step else (16, rows)
        x = whole[at * 16 :].as_strided(shape, strides).copy_(torch.randn(shape))
        near, weight, g = x.clone(memory_format=torch.contiguous_format), w[:, : shape[1]], gy[:1].expand(shape[0], 24)
        assert torch.equal(
            extension.linear_act(x, weight, None, "none", 0.0), extension.linear_act(near, weight, None, "none", 0.0)
        )
        ours, wanted = torch.empty(2, 24, shape[1], dtype=torch.bfloat16).unbind()
        for operand, gradient in ((x, ours), (near, wanted)):
            extension.linear_act_backward(g, None, operand, None, gradient, None, "none", 0.0)
        assert torch.equal(ours, wanted) and bool(ours.any())
    far = whole[48:].as_strided((rows, 16), (step, 1)).copy_(torch.randn(rows, 16))  # a weight
    x = torch.randn(5, 16).bfloat16()
    near = far.clone(memory_format=torch.contiguous_format)
    assert torch.equal(
        extension.linear_act(x, far, None, "relu", 0.0), extension.linear_act(x, near, None, "relu", 0.0)
    )
    far = whole[64:].as_strided((rows, 24), (step, 1)).copy_(gy)  # a gradient
    both = [extension.linear_act_backward(g, None, None, w, None, None, "none", 0.0) for g in (far, gy)]
    assert torch.equal(*both)


extension.LIBRARY = Path(sys.argv[1])
assert extension.absent() is None
for part in (far_apart, compare, ask_for_some, autocast, compiled_and_warned):
    part()
sys.stdout.write("all as it should be\n")
