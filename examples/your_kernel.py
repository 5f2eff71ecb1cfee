"""An op of your own by the template of docs/adding-an-op.md: a reference, two kernels, two derivatives, one check.

Snake, x + sin(a x)^2 / a with a learnt a for each channel, is the activation of several vocoder GANs (Ziyin et al.,
2020, eq. 3). On a GPU, or under TRITON_INTERPRET=1, the kernels run; elsewhere the reference does.

python examples/your_kernel.py
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from fastgan.ops.backend import by_reference, register

OP = register("snake")  # 'fastgan doctor' shows what such ops take
BLOCK = 256


@triton.jit
def snake_fwd_kernel(x, a, y, C, BLOCK: tl.constexpr):
    """Y = x + sin(a x)^2 / a, of a row of C channels. Moves 2 s C bytes."""
    row = tl.program_id(0).to(tl.int64) * C
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = channel < C
    v = tl.load(x + row + channel, mask=inside, other=0.0).to(tl.float32)
    rate = tl.load(a + channel, mask=inside, other=1.0).to(tl.float32)
    s = tl.sin(rate * v)
    tl.store(y + row + channel, (v + s * s / rate).to(y.dtype.element_ty), mask=inside)


@triton.jit
def snake_bwd_kernel(x, a, dy, dx, C, BLOCK: tl.constexpr):
    """Dx = dy (1 + sin(2 a x)): a's own gradient is a sum over rows, left to PyTorch."""
    row = tl.program_id(0).to(tl.int64) * C
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = channel < C
    v = tl.load(x + row + channel, mask=inside, other=0.0).to(tl.float32)
    rate = tl.load(a + channel, mask=inside, other=1.0).to(tl.float32)
    g = tl.load(dy + row + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row + channel, (g * (1.0 + tl.sin(2.0 * rate * v))).to(dx.dtype.element_ty), mask=inside)


def reference(x: Tensor, a: Tensor) -> Tensor:
    """The definition of right."""
    return x + (a * x).sin().square() / a


def launched(kernel: Any, x: Tensor, a: Tensor, *others: Tensor) -> Tensor:
    """Run one of the kernels on contiguous operands into new memory."""
    out = torch.empty_like(x)
    rows, channels = x.numel() // x.shape[-1], x.shape[-1]
    if x.numel():
        kernel[(rows, triton.cdiv(channels, BLOCK))](x, a, *others, out, channels, BLOCK=BLOCK)
    return out


class Snake(torch.autograd.Function):
    """The op; its backward goes by PyTorch's operators where a graph of it is wanted, else by the kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor) -> Tensor:
        """Keep the operands, nothing else."""
        ctx.save_for_backward(x, a)
        return launched(snake_fwd_kernel, x, a)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Form what is asked for; differentiable again where a graph is kept."""
        x, a = ctx.saved_tensors
        dx = da = None
        if ctx.needs_input_grad[0]:
            again = torch.is_grad_enabled()
            dx = dy * (1 + (2 * a * x).sin()) if again else launched(snake_bwd_kernel, x, a, dy.contiguous())
        if ctx.needs_input_grad[1]:
            slope = x * (2 * a * x).sin() / a - (a * x).sin().square() / a.square()
            da = (dy * slope).sum(dim=list(range(x.dim() - 1)))
        return dx, da


def snake(x: Tensor, a: Tensor) -> Tensor:
    """Snake of x (..., channels) by a (channels,), differentiable twice."""
    if by_reference(OP, x):
        return reference(x, a)
    y: Tensor = Snake.apply(x.contiguous(), a.contiguous())
    return y


device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(37, 301, device=device, requires_grad=True)
a = (torch.rand(301, device=device) + 0.5).requires_grad_()
wanted = reference(x.double(), a.double())
error = (snake(x, a) - wanted).abs().max().item()
bound = (
    2 * (reference(x, a) - wanted).abs().max().item() + 4 * torch.finfo(torch.float32).eps * wanted.abs().max().item()
)
assert error <= bound, f"{error} > {bound}"  # no more than twice what PyTorch errs by
torch.autograd.gradcheck(
    snake, (x[:2, :3].double().detach().requires_grad_(), a[:3].double().detach().requires_grad_())
)

given = x.detach().requires_grad_(), a.detach().requires_grad_()
for mine, plain in zip(*(torch.autograd.grad(f(*given).sum(), given) for f in (snake, reference)), strict=True):
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)

rate = nn.Parameter(torch.ones(64, device=device))
first, last = nn.Linear(1, 64).to(device), nn.Linear(64, 1).to(device)
optimizer = torch.optim.Adam([*first.parameters(), *last.parameters(), rate], 1e-2)
time = torch.linspace(-3, 3, 256, device=device).unsqueeze(1)
for step in range(3):
    loss = (last(snake(first(time), rate)) - (3 * time).sin()).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: {loss.item():.4f}")
