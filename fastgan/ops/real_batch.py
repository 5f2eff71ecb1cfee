"""real_batch: the real images of a step in one launch, chosen by a seed and a clock on the device."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.ops import host_draws, streams
from fastgan.ops.backend import KERNEL_DTYPES, choose, register
from fastgan.ops.latent import described
from fastgan.ops.permutation import permuted
from fastgan.ops.registration import traced

OP = register("real_batch")
MOST_ELEMENTS = 2**30  # of a sample that the kernel takes
Part = tuple[int, int]
READ_AHEAD = 4096  # positions that are shuffled at a time on the CPU


def real_batch(
    images: Tensor,
    clock: Tensor,
    *,
    batch_size: int,
    seed: int,
    site: streams.Site,
    flip: bool = False,
    noise: Tensor | None = None,
    labels: Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    out: Tensor | None = None,
    part: Part | None = None,
    in_order: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return a batch of real samples, with their labels if given: the same on every device. No gradient.

    Draw ``count = clock * per_step + index`` is batch ``count % (n // batch_size)`` of epoch ``count // (n //
    batch_size)``. Each epoch is a permutation of its own (:func:`fastgan.ops.permutation.permuted`), whose ragged last
    batch is dropped. One launch gathers, normalises, mirrors, adds noise, casts, lays out, and gathers the labels; what
    it does depends on nothing on the host, so that a captured graph replays it, and a resumed run needs the clock.

    Args:
        images: (n, C, H, W) or (n, d), contiguous: uint8, which becomes x / 127.5 - 1, or floating, taken as it is.
        clock: int64 () on the images' device, the iterations done, from 0.
        batch_size: from 1 to n.
        seed: up to 64 bits.
        site: (draws of real batches in a step, which of them this is).
        flip: mirror each image left to right with probability 1/2.
        noise: sigma, float32 () on the device, of normal noise that is added to each element (instance noise); None
            for none.
        labels: int64 (n,) on the device, contiguous.
        dtype: float32 where None, bf16 or fp16; all is formed in fp32 and rounded once.
        memory_format: torch.channels_last or torch.contiguous_format; None: channels_last on CUDA for images of more
            than one channel, contiguous elsewhere. Values do not depend on it.
        out: memory (batch_size, ...) to write to, each sample dense in either layout: part of a larger buffer, say.
            It decides dtype and layout.
        part: (first, rows): so many rows of the batch, bit for bit, from the first on, and nothing else; the result has
            ``rows`` samples.
        in_order: ``images`` are a ring of batches, gathered already: draw ``count`` is the one at ``count % (n //
            batch_size)``, as it lies. Gathered by :func:`chosen`, it is what the data set itself would have given. With
            ``part``, a ring of parts.

    Returns:
        ``out`` or new memory, (batch_size, C, H, W) or (batch_size, d); with ``labels`` also theirs, int64
        (batch_size,). Without noise the same bits on every device.

    Raises:
        UserError: for operands that are none of the above.
    """
    first, rows = part or (0, batch_size)
    _check(images, clock, rows if in_order else batch_size, noise, labels)
    streams.check_site(site)
    if flip and images.dim() != 4:
        raise UserError(f"flip=True needs images (n, C, H, W), not samples {tuple(images.shape)}: set flip=False")
    if not (first >= 0 and 1 <= rows <= batch_size - first):
        raise UserError(f"part {(first, rows)} is not (first row, rows) of a batch of {batch_size}")
    shape = (rows, *images.shape[1:])
    channels_last = False
    if out is None:
        wanted = memory_format or _layout(images)
        out = torch.empty(shape, dtype=dtype or torch.float32, device=images.device, memory_format=wanted)
        channels_last = wanted == torch.channels_last
    else:
        channels_last = _its_layout(out, shape, dtype, images.device)
    if out.dtype not in KERNEL_DTYPES:
        raise UserError(f"a batch is float32, bfloat16 or float16, not {str(out.dtype).removeprefix('torch.')}")
    place = batch_size, first
    picked = _filled(out, images, clock, seed, site, flip, noise, labels, channels_last, place, in_order)
    return out if picked is None else (out, picked)


def chosen(clock: Tensor, *, n: int, batch_size: int, seed: int, site: streams.Site) -> Tensor:
    """Return which of n samples :func:`real_batch` takes, int64 (batch_size,) on the clock's device."""
    batches, count = n // batch_size, streams.count(clock, site)
    if host_draws.usable(clock):
        now, batch = divmod(int(count), batches)
        several = max(1, READ_AHEAD // batch_size)
        ahead = _ahead(n, seed, now, batch // several, several * batch_size)
        return ahead[batch % several * batch_size :][:batch_size].clone()
    epoch = count // batches
    position = (count - epoch * batches) * batch_size + torch.arange(batch_size, device=clock.device)
    return permuted(position, n, seed, epoch)


@functools.lru_cache(maxsize=8)
def _ahead(n: int, seed: int, epoch: int, part: int, length: int) -> Tensor:
    """Return the samples at a part of an epoch's positions. The shuffle of a batch costs its calls, not its sums."""
    return permuted(torch.arange(part * length, min(n, (part + 1) * length)), n, seed, epoch)


def normalised(pixels: Tensor) -> Tensor:
    """Return x / 127.5 - 1 in float32, with the same bits on every device."""
    # CUDA would multiply by the inverse of a number on the host, and be 1 ulp off
    return pixels.to(torch.float32).div_(torch.full((), 127.5, device=pixels.device)).sub_(1.0)


def noises(shape: torch.Size, generator: Tensor, dtype: torch.dtype = torch.float32, first: int = 0) -> Tensor:
    """Return normal numbers for rows of a batch, from the ``first`` on. They are numbered with the channels innermost,
    from 0 for each sample, so that a sample's first is the first of a counter."""
    rows, size = shape[0], shape[1:].numel()
    across, fours = (shape[0], *shape[2:], shape[1]), -(-size // 4)  # (rows, H, W, C)
    numbers = streams.normals(streams.words(generator, rows * fours * 4, first * fours), dtype)
    return numbers.view(rows, -1)[:, :size].reshape(across).movedim(-1, 1)


def mirrored(rows: int, generator: Tensor, first: int = 0) -> Tensor:
    """Return which rows of a batch are mirrored, from the ``first`` on, bool (rows,)."""
    word = streams.counters(generator, torch.arange(first, first + rows, device=generator.device))[:, 0]
    return word >= 2**31


def _check(images: Tensor, clock: Tensor, batch_size: int, noise: Tensor | None, labels: Tensor | None) -> None:
    """Raise a ``UserError`` for operands that are none."""
    floating = images.dtype == torch.uint8 or images.is_floating_point()
    if images.dim() not in (2, 4) or not floating or not images.is_contiguous():
        wanted = "uint8 or floating (n, C, H, W) or (n, d), contiguous"
        raise UserError(f"images have to be {wanted}, not {described(images)}: cast them, or call .contiguous()")
    n, device = len(images), images.device
    if not 1 <= batch_size <= n:
        raise UserError(f"batch_size {batch_size} is not from 1 to the {n} samples that there are: set another one")
    streams.check_clock(clock, device)
    if noise is not None and (noise.dtype != torch.float32 or noise.dim() or noise.device != device):
        raise UserError(f"noise has to be float32 () on {device}, its standard deviation, not {described(noise)}")
    if labels is not None and (
        labels.dtype != torch.int64 or labels.shape != (n,) or labels.device != device or not labels.is_contiguous()
    ):
        raise UserError(f"labels have to be int64 ({n},) on {device}, contiguous, not {described(labels)}")


def _layout(images: Tensor) -> torch.memory_format:
    """Return the layout that convolutions want."""
    wide = images.is_cuda and images.dim() == 4 and images.shape[1] > 1
    return torch.channels_last if wide else torch.contiguous_format


def _its_layout(out: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether the samples of ``out`` are channels_last, not contiguous; a ``UserError`` where they are neither."""
    usable = tuple(out.shape) == shape and out.device == device and out.dtype == (dtype or out.dtype)
    apart = len(out) < 2 or out.stride(0) >= out[0].numel()  # no two share memory
    if usable and apart:
        if out[:1].is_contiguous():
            return False
        if out.dim() == 4 and out[:1].is_contiguous(memory_format=torch.channels_last):
            return True
    wanted = f"{dtype or out.dtype} {shape} on {device}, each sample dense and apart from the next"
    raise UserError(f"out has to be {wanted}, not {described(out)}")


@torch.no_grad()
def _filled(
    out: Tensor,
    images: Tensor,
    clock: Tensor,
    seed: int,
    site: streams.Site,
    flip: bool,
    noise: Tensor | None,
    labels: Tensor | None,
    channels_last: bool,
    place: tuple[int, int],
    in_order: bool,
) -> Tensor | None:
    """Fill ``out`` by one launch or by plain PyTorch, and return the labels. ``place``: in how large a batch it lies,
    from which row on."""
    batch_size, first = place
    kinds = (torch.uint8, *KERNEL_DTYPES)
    fits = images.dtype in kinds and out[0].numel() <= MOST_ELEMENTS and len(images) < 2**31
    if fits and not traced(images, clock, noise, labels, out) and choose(OP, out.device, out.dtype).backend == "triton":
        from fastgan.kernels import real_batch as kernels

        return kernels.real_batch(
            images, clock, out, seed=streams.key(seed), site=site, flip=flip, noise=noise, labels=labels,
            channels_last=channels_last, part=place, in_order=in_order,
        )  # fmt: skip
    count = streams.count(clock, site)
    if in_order:
        index = count % (len(images) // len(out)) * len(out) + torch.arange(len(out), device=images.device)
    else:
        index = chosen(clock, n=len(images), batch_size=batch_size, seed=seed, site=site)[first:][: len(out)]
    batch = images.index_select(0, index)
    batch = normalised(batch) if batch.dtype == torch.uint8 else batch.to(torch.float32)
    if flip:
        turned = mirrored(len(out), streams.rng(streams.FLIP, count, seed), first)
        batch = torch.where(turned.view(-1, 1, 1, 1), batch.flip(-1), batch)
    if noise is not None:
        batch = batch + noise * noises(batch.shape, streams.rng(streams.NOISE, count, seed), first=first)
    out.copy_(batch)
    return None if labels is None else labels.index_select(0, index)
