"""The data set as a training step sees it: one tensor to gather from, on the device where it fits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.data.intake import as_labels, as_stored
from fastgan.data.table import Table
from fastgan.errors import UserError

DEVICE_SHARE = 0.5  # of the free device memory: the other half is for networks, gradients and activations


def normalise(pixels: Tensor) -> Tensor:
    """Map uint8 pixels 0 ... 255, of any shape, to float32 in [-1, 1]: x / 127.5 - 1."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


@dataclass(frozen=True, eq=False)
class Modes:
    """The components of a mixture of equal, isotropic Gaussians: what mode coverage is counted against.

    Attributes:
        centres: (modes, d) float32, always on the CPU.
        sigma: Standard deviation of every component along each axis.
    """

    centres: Tensor
    sigma: float


@dataclass(frozen=True)
class File:
    """A file in which samples lie as ``images`` has them, one behind the other, from byte ``offset`` on."""

    path: Path
    offset: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Samples, their labels and where they come from.

    Attributes:
        name: The name that it was loaded by.
        images: (n, C, H, W), uint8 or float32 in [-1, 1]; or points, (n, d) float32. Contiguous.
        labels: (n,) int64 on `device`, 0 ... len(classes) - 1; or None.
        classes: Name of each label.
        license: Terms under which the data may be used.
        source: Who made it, and where it was read from.
        modes: Components of a mixture, where the samples were drawn from one.
        table: The columns that points were encoded from, where they were rows of a table.
        placed: Where batches go when `images` stays elsewhere; None means where `images` is.
        file: What `images` is a memory map of; None where they lie in memory. Training reads it ahead of its steps.
        path: What stood behind the name and a colon when it was loaded; None where nothing did.
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    license: str = ""
    source: str = ""
    modes: Modes | None = None
    table: Table | None = None
    placed: torch.device | None = None
    file: File | None = None
    path: str | None = None

    @classmethod
    def from_tensor(
        cls,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        name: str = "tensor",
        classes: Sequence[str] | None = None,
        layout: str | None = None,
    ) -> Dataset:
        """Make a data set of a tensor of one's own; it stays on its device and is not copied where it need not be.

        Args:
            t: Images, uint8 NHWC or NCHW (told apart by which axis is 1, 3 or 4 long; (n, H, W) is grey) or floats
                NCHW in [-1, 1]; or points, floats (n, d).
            labels: (n,) integers, 0 ... classes - 1.
            name: What messages and logs call it.
            classes: Names of the labels; their numbers where None.
            layout: ``"NHWC"`` or ``"NCHW"`` where the shape alone does not tell.

        Raises:
            UserError: Another dtype or shape, an ambiguous layout, NaN, floats outside [-1, 1], nothing in it.
        """
        images = as_stored(t, name=name, layout=layout)
        if labels is None:
            return cls(name=name, images=images)
        numbers, names = as_labels(labels, len(images), name=name, classes=classes)
        return cls(name=name, images=images, labels=numbers.to(images.device), classes=names)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        kind = str(self.images.dtype).removeprefix("torch.")
        labels = f", {len(self.classes)} classes" if self.classes else ""
        return f"Dataset({self.name}: {len(self)} of {self.sample_shape}, {kind}{labels}, on {self.device})"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W), or (d,) for points."""
        return tuple(self.images.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where `batch` puts what it gathers."""
        return self.placed or self.images.device

    @property
    def resident(self) -> bool:
        """Whether the samples lie on `device` itself, so that `batch` may be captured in a CUDA graph."""
        return self.images.device == self.device

    def batch(self, index: Tensor) -> Tensor:
        """Gather the samples at ``index``: (b,) integers to (b, *sample_shape) float32 on `device`.

        Pixels are normalised to [-1, 1]; floats pass unchanged. Where the data set is resident and ``index`` lies on
        the same device nothing here touches the host.
        """
        if self.resident:
            samples = self.images.index_select(0, index.to(self.device))
        else:
            # Pinned, so that the copy runs beside the step; the allocator keeps the buffer until the copy is done.
            pin = self.device.type == "cuda"
            samples = torch.empty((len(index), *self.sample_shape), dtype=self.images.dtype, pin_memory=pin)
            torch.index_select(self.images, 0, index.cpu(), out=samples)
            samples = samples.to(self.device, non_blocking=True)
        return normalise(samples) if samples.dtype == torch.uint8 else samples

    def part(self, start: int, stop: int | None = None) -> Dataset:
        """Samples ``start`` ... ``stop - 1``, or all behind ``start``, without copying them."""
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, images=self.images[start:stop], labels=labels, file=None if start else self.file)

    def to(self, device: str | torch.device, *, resident: bool = True) -> Dataset:
        """Move it whole to ``device``; with one warning it stays on the host where the device has no room for it.

        So it does, without a warning, where it is not to be ``resident``.
        """
        device = torch.device(device)
        labels = self.labels
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise UserError(f"no CUDA device was found to put the data set {self.name!r} on: say device='cpu'")
            if self.images.device.type != "cuda" and not (resident and self._fits(device)):
                return replace(self, labels=None if labels is None else labels.to(device), placed=device)
        images = self.images.to(device)
        file = self.file if images is self.images else None
        labels = None if labels is None else labels.to(device)
        return replace(self, images=images, labels=labels, placed=None, file=file)

    def _fits(self, device: torch.device) -> bool:
        free, _ = torch.cuda.mem_get_info(device)
        if self.images.nbytes <= DEVICE_SHARE * free:
            return True
        needs, room = f"{self.images.nbytes / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB"
        warnings.warn(
            f"{self.name} ({needs}) would take more than {DEVICE_SHARE:.0%} of the {room} free on {device}: "
            f"it stays {'on the disk' if self.file else 'in host memory'}, and training prefetches its batches",
            stacklevel=3,
        )
        return False

    def fit(self, *, image_size: int | None = None, channels: int | None = None) -> Dataset:
        """Give a model of square ``image_size`` images with ``channels`` what it wants, or say why that cannot be.

        Grey 28x28 images are padded to 32x32 with background (0, or -1 in floats); nothing else is changed.

        Raises:
            UserError: Points where images are wanted, another number of channels, another size.
        """
        if image_size is None and channels is None:
            return self
        if len(self.sample_shape) != 3:
            raise UserError(
                f"the data set {self.name!r} holds points of {self.sample_shape[0]} numbers and the model wants "
                "images: choose a data set of images, or a model of points"
            )
        c, h, w = self.sample_shape
        if channels not in (None, c):
            raise UserError(
                f"the data set {self.name!r} has {c} channel{'s' * (c > 1)} and the model wants {channels}: "
                f"set channels={c}, or convert the images"
            )
        if image_size is None or (h, w) == (image_size, image_size):
            return self
        if (c, h, w, image_size) == (1, 28, 28, 32):
            background = 0.0 if self.images.dtype == torch.uint8 else -1.0
            return replace(self, images=F.pad(self.images, (2, 2, 2, 2), value=background), file=None)
        mend = f"set image_size={h}, or resize the images" if h == w else "crop or resize the images"
        raise UserError(
            f"the data set {self.name!r} has images of {h}x{w} and the model wants {image_size}x{image_size}: {mend}"
        )
