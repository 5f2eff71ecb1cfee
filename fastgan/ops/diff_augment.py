"""diff_augment: what a discriminator sees of real and fake images alike, differentiable as often as asked."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fastgan.errors import UserError, unknown
from fastgan.ops import dropout as drop
from fastgan.ops.backend import by_reference, register
from fastgan.ops.conv_compute import format_of
from fastgan.ops.registration import batched, below_autograd, register_op, traced, transformed

OP = register("diff_augment")
STEPS = ("color", "translation", "cutout")
POLICY = ",".join(STEPS)
MOST_CHANNELS = 64  # that a program of the kernels can have: images of more go by plain PyTorch


def diff_augment(input: Tensor, policy: str = POLICY, *, rng: Tensor | None = None) -> Tensor:
    """Return randomly augmented images: one launch forward, one for each backward, whatever the policy.

    Differentiable Augmentation, Zhao et al. 2020, section 3 (arXiv:2006.10738), as its published code does it. Both the
    real and the fake images of a discriminator go through it, in D's step and in G's, each image with draws of its own:

    - ``color``: brightness x + (u - 1/2); then saturation (x - m) 2u + m, m the mean over a pixel's channels; then
      contrast (x - M) (u + 1/2) + M, M the mean over the image; each u uniform in [0, 1), with 24 bits;
    - ``translation``: by whole pixels, up to an eighth of height and width (rounded, halves up), both ways and all
      alike; 0 comes in from beyond the border;
    - ``cutout``: zeros in a window of half the height and width (rounded, halves up). Its center is drawn over the
      whole image, so that at a border part of the window falls outside.

    Args:
        input: images (N, C, H, W), C channels of whatever number, any strides; bf16, fp16 or fp32, or any other
            floating dtype by plain PyTorch, as images of more than 64 channels. The paper's range is [-1, 1], as
            everywhere here; nothing is clamped to it.
        policy: steps of the above joined by commas, each at most once, done in the order given. ``""``: nothing is
            done, and the input itself is returned.
        rng: int64 (2) on the input's device, a seed and an offset, as ``fastgan.ops.dropout.draw`` makes them; None:
            fresh ones, by PyTorch's own generator on the device (``torch.manual_seed`` governs it, and each replay of
            a CUDA graph draws anew). Calls without ``rng`` draw apart, as the paper has it for real and fake; with the
            same ``rng``, image n of every call has the same draws.

    Returns:
        (N, C, H, W) in the input's dtype, under autocast too, formed in fp32; channels_last where the input or what it
        is a crop of is, else contiguous. What is cut out or comes from beyond a border is 0 even where the image is not
        finite.

    Gradient order: any, with respect to the input: the map is linear but for the brightness. Nothing is kept but the
    16 bytes of ``rng``. Functional transforms (``torch.func``) go by plain PyTorch.

    Raises:
        UserError: for an unknown or repeated step, and images that are not floating or not (N, C, H, W).
    """
    order = check_policy(policy)
    if input.dim() != 4 or not input.is_floating_point():
        raise _no_images(input)
    if not order:
        return input
    rng = _fresh(input.device) if rng is None else drop.usable(rng, input.device)
    if transformed():
        return _plainly(input, rng, order)
    how = (rng, order, False, True, _channels_last(input))
    if not _fits(input):
        return _formed("reference", input, *how)
    if traced(input, rng):
        augmented: Tensor = _diff_augment(input, *how)
        return augmented
    if torch.is_grad_enabled() and input.requires_grad:
        return _DiffAugment.apply(input, *how, True)
    return _formed("triton", input, *how)


def check_policy(policy: str) -> str:
    """Return a policy's steps, joined by commas; raise a ``UserError`` for what is none of them, or there twice."""
    steps = [step.strip() for step in policy.split(",")] if policy.strip() else []
    for step in steps:
        if step not in STEPS:
            raise unknown("step of a DiffAugment policy", step, STEPS)
        if steps.count(step) > 1:
            raise UserError(f"DiffAugment policy {policy!r} has {step!r} more than once: name each step once")
    return ",".join(steps)


class Drawn(NamedTuple):
    """What is drawn for N images: three factors (N, floating), then whole pixels (N, int64)."""

    brightness: Tensor  # added: from -1/2 to 1/2
    saturation: Tensor  # from 0 to 2
    contrast: Tensor  # from 1/2 to 3/2
    down: Tensor  # row h of a translated image is row h + down
    right: Tensor
    top: Tensor  # first row and column of the cutout's window: below 0 where part of it is outside
    left: Tensor


def drawn(rng: Tensor, shape: torch.Size, dtype: torch.dtype = torch.float32) -> Drawn:
    """Return what a seed and an offset give to images of that shape: word for word what the kernels draw."""
    N, _, H, W = shape
    b, s, k, down, right, row, column, _ = drop.words(rng, torch.arange(2 * N, device=rng.device)).view(N, 8).unbind(1)
    units = [(word >> 8).to(dtype) * 2.0**-24 for word in (b, s, k)]
    reach_h, reach_w = (H + 4) // 8, (W + 4) // 8
    cut_h, cut_w = window(H), window(W)
    return Drawn(
        units[0] - 0.5,
        units[1] * 2,
        units[2] + 0.5,
        _below(down, 2 * reach_h + 1) - reach_h,
        _below(right, 2 * reach_w + 1) - reach_w,
        _below(row, H + 1 - cut_h % 2) - cut_h // 2,
        _below(column, W + 1 - cut_w % 2) - cut_w // 2,
    )


def window(size: int) -> int:
    """Return the cutout's extent along a side of that size: half of it, halves up."""
    return (size + 1) // 2


def _below(word: Tensor, count: int) -> Tensor:
    return word * count >> 32


def _fresh(device: torch.device) -> Tensor:
    """Return what ``drop.draw`` returns, by a function that torch.compile traces."""
    return torch.randint(2**63 - 1, (2,), device=device)


def _no_images(input: Tensor) -> UserError:
    given = f"{str(input.dtype).removeprefix('torch.')} {tuple(input.shape)}"
    return UserError(f"diff_augment needs floating images (N, C, H, W), not {given}: cast or reshape them first")


def _channels_last(input: Tensor) -> bool:
    """Whether images lie as channels_last ones do, dense or cropped."""
    return format_of(input) == torch.channels_last and not input.is_contiguous()


def _fits(input: Tensor) -> bool:
    """Whether the kernels take these images; PyTorch computes what they do not."""
    return not by_reference(OP, input) and input.shape[1] <= MOST_CHANNELS and input.layout == torch.strided


def _plainly(input: Tensor, rng: Tensor, order: str, transposed: bool = False, lifted: bool = True) -> Tensor:
    """Return the steps done one after the other, by plain PyTorch; transposed: what they make of a gradient."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    its = drawn(rng, input.shape, dtype)
    lift = its.brightness if lifted and not transposed else torch.zeros_like(its.brightness)
    sign = -1 if transposed else 1
    values = input.to(dtype)
    for step in order.split(",")[::sign]:
        if step == "color":
            values = _colored(values, lift, its.saturation, its.contrast)
        elif step == "translation":
            values = _translated(values, sign * its.down, 2)
            values = _translated(values, sign * its.right, 3)
        else:
            values = _cut(values, its.top, its.left)
    return values.to(input.dtype)


def _colored(values: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Return brightness, saturation and contrast, each (N), applied in turn."""
    brightness, saturation, contrast = (factor.view(-1, 1, 1, 1) for factor in (brightness, saturation, contrast))
    values = values + brightness
    gray = values.mean(1, keepdim=True)
    values = (values - gray) * saturation + gray
    mean = values.mean((1, 2, 3), keepdim=True)
    return (values - mean) * contrast + mean


def _translated(values: Tensor, by: Tensor, dim: int) -> Tensor:
    """Return what stands ``by`` (N) further along a dimension, 0 where that is outside."""
    size = values.shape[dim]
    shape = [-1 if at == dim else 1 for at in range(4)]
    at = torch.arange(size, device=values.device).view(shape) + by.view(-1, 1, 1, 1)
    taken = values.gather(dim, at.clamp(0, max(size - 1, 0)).expand(values.shape))
    return torch.where((at >= 0) & (at < size), taken, 0)


def _cut(values: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Return the images with 0 in the windows that begin at top and left (N)."""
    H, W = values.shape[2:]
    row = torch.arange(H, device=values.device).view(1, 1, -1, 1) - top.view(-1, 1, 1, 1)
    column = torch.arange(W, device=values.device).view(1, 1, 1, -1) - left.view(-1, 1, 1, 1)
    inside = (row >= 0) & (row < window(H)) & (column >= 0) & (column < window(W))
    return torch.where(inside, 0, values)


def _formed(
    backend: str, input: Tensor, rng: Tensor, order: str, transposed: bool, lifted: bool, channels_last: bool
) -> Tensor:
    """Return the images in the layout that is asked for; with a graph of PyTorch's own by the reference."""
    if backend != "triton":
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return _plainly(input, rng, order, transposed, lifted).contiguous(memory_format=layout)
    from fastgan.kernels import diff_augment as kernels

    how: dict[str, Any] = {"transposed": transposed, "lifted": lifted, "channels_last": channels_last}
    return kernels.diff_augment(input, rng, order, **how)


class _DiffAugment(Function):
    """The augmented images, or the transpose of that map but for the brightness. Keeps the seed and the offset."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, rng: Tensor, order: str, transposed: bool, lifted: bool, channels_last: bool,
        direct: bool,
    ) -> Tensor:  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rng)
        ctx.how = (order, not transposed, False, channels_last, direct)
        if direct:
            return _formed("triton", input, rng, order, transposed, lifted, channels_last)
        with below_autograd():
            augmented: Tensor = _diff_augment(input, rng, order, transposed, lifted, channels_last)
        return augmented

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        return _moved(grad, ctx.saved_tensors[0], *ctx.how), *(None,) * 6


def _moved(
    grad: Tensor, rng: Tensor, order: str, transposed: bool, lifted: bool, channels_last: bool, direct: bool
) -> Tensor:
    """Return what the map makes of a gradient, with a graph of its own where one is being recorded."""
    if not direct:
        moved: Tensor = _diff_augment(grad, rng, order, transposed, lifted, channels_last)
        return moved
    if batched(grad):
        return _plainly(grad, rng, order, transposed, lifted)
    if torch.is_grad_enabled():
        return _DiffAugment.apply(grad, rng, order, transposed, lifted, channels_last, True)
    return _formed("triton", grad, rng, order, transposed, lifted, channels_last)


def _compute(input: Tensor, rng: Tensor, order: str, transposed: bool, lifted: bool, channels_last: bool) -> Tensor:
    backend = "triton" if _fits(input) else "reference"
    return _formed(backend, input, rng, order, transposed, lifted, channels_last)


def _fake(input: Tensor, rng: Tensor, order: str, transposed: bool, lifted: bool, channels_last: bool) -> Tensor:
    return torch.empty_like(input, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _autograd(input: Tensor, rng: Tensor, order: str, transposed: bool, lifted: bool, channels_last: bool) -> Tensor:
    if transformed():
        return _plainly(input, rng, order, transposed, lifted)
    augmented: Tensor = _DiffAugment.apply(input, rng, order, transposed, lifted, channels_last, False)
    return augmented


_diff_augment = register_op(
    "diff_augment(Tensor input, Tensor rng, str order, bool transposed, bool lifted, bool channels_last) -> Tensor",
    compute=_compute,
    fake=_fake,
    autograd=_autograd,
)
