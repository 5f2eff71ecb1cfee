"""What a tensor from outside may look like, and how it is stored: images NCHW, points as rows, labels as int64."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.errors import UserError, unknown

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
MOST_CLASSES = 1 << 16
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_stored(t: Tensor, *, name: str, layout: str | None = None) -> Tensor:
    """Return images as (n, C, H, W) uint8 or float32, points as (n, d) float32; see `Dataset.from_tensor`."""
    if not isinstance(t, Tensor):
        raise UserError(f"{name}: a torch.Tensor is needed, not {type(t).__name__}: wrap it in torch.as_tensor")
    if layout not in (None, "NHWC", "NCHW"):
        raise unknown("layout", layout, ("NHWC", "NCHW"))
    t = t.detach()
    if t.dtype != torch.uint8 and not t.is_floating_point():
        raise UserError(f"{name}: the images are {_dtype(t)}: make them uint8 (0 ... 255) or floats in [-1, 1]")
    if t.numel() == 0:
        raise UserError(f"{name}: nothing is in it (shape {tuple(t.shape)}): at least one sample is needed")
    return (_pixels(t, name, layout) if t.dtype == torch.uint8 else _floats(t, name, layout)).contiguous()


def _pixels(t: Tensor, name: str, layout: str | None) -> Tensor:
    if t.dim() == 3:
        return t.unsqueeze(1)
    if t.dim() != 4:
        raise UserError(f"{name}: uint8 images are (n, H, W, C), (n, C, H, W) or (n, H, W), not {tuple(t.shape)}")
    layouts = [word for word, axis in (("NCHW", 1), ("NHWC", 3)) if t.shape[axis] in CHANNELS]
    if layout is None and len(layouts) == 2:
        raise UserError(
            f"{name}: the shape {tuple(t.shape)} reads both as NHWC and as NCHW: say layout='NHWC' or layout='NCHW'"
        )
    if not layouts or layout not in (None, *layouts):
        wanted = f"{layout or 'NHWC or NCHW'} with 1, 3 or 4 channels"
        raise UserError(f"{name}: the shape {tuple(t.shape)} is not {wanted}: convert the images")
    return t.permute(0, 3, 1, 2) if (layout or layouts[0]) == "NHWC" else t


def _floats(t: Tensor, name: str, layout: str | None) -> Tensor:
    t = t.to(torch.float32)
    low, high = (bound.item() for bound in t.aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN compares as False
        raise UserError(f"{name}: NaN or infinite values are among the floats: remove those samples")
    if t.dim() == 2:
        return t
    if t.dim() != 4:
        raise UserError(f"{name}: floats are images (n, C, H, W) or points (n, d), not {tuple(t.shape)}: reshape them")
    if layout is None and t.shape[1] not in CHANNELS and t.shape[3] in CHANNELS:
        raise UserError(f"{name}: float images are NCHW and {tuple(t.shape)} looks like NHWC: permute(0, 3, 1, 2)")
    if low < -1 or high > 1:
        raise UserError(
            f"{name}: float images must lie in [-1, 1] and these reach from {low:.4g} to {high:.4g}: "
            "scale them, or give uint8 images"
        )
    if low >= 0 and high > low:
        warnings.warn(
            f"{name}: the float images lie in [{low:.4g}, {high:.4g}], and [-1, 1] is the range that a generator "
            "fills: if they are meant as [0, 1], pass 2 * x - 1",
            stacklevel=4,
        )
    return t.permute(0, 3, 1, 2) if layout == "NHWC" else t


def as_labels(
    labels: Tensor, count: int, *, name: str, classes: Sequence[str] | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as (count,) int64 and the names of the classes, or say what is wrong with them."""
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        kind = _dtype(labels) if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(f"{name}: labels must be integers in a tensor, not {kind}: give the number of each class")
    if labels.dim() != 1 or len(labels) != count:
        raise UserError(f"{name}: {count} samples need labels of shape ({count},), not {tuple(labels.shape)}")
    labels = labels.to(torch.int64).contiguous()
    most = MOST_CLASSES if classes is None else len(classes)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= most:
        raise UserError(f"{name}: labels reach from {low} to {high}: number the classes from 0 to at most {most - 1}")
    return labels, tuple(map(str, range(high + 1))) if classes is None else tuple(classes)


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")
