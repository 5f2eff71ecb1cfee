"""`Dataset`: gathering, devices, fitting to a model, and tensors of one's own."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastgan.data.dataset as module
from fastgan.data import Dataset, File, load, normalise
from fastgan.errors import UserError


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def floats(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_normalise() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = normalise(every)
    assert values.dtype == torch.float32
    assert values[0] == -1 and values[255] == 1
    assert (values.double() - (every.double() / 127.5 - 1)).abs().max() < 1e-7
    assert torch.equal(((values + 1) * 127.5).round().to(torch.uint8), every)
    assert every[7] == 7  # the data set itself is not written to


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_batch(dtype: torch.dtype) -> None:
    data = Dataset.from_tensor(pixels(9, 3, 5, 6))
    index = torch.tensor([8, 0, 3, 3], dtype=dtype)
    batch = data.batch(index)
    assert batch.shape == (4, 3, 5, 6) and batch.dtype == torch.float32 and batch.is_contiguous()
    assert torch.equal(batch, data.images[[8, 0, 3, 3]].float() / 127.5 - 1)
    assert data.batch(index[:0]).shape == (0, 3, 5, 6)


def test_repr_is_short() -> None:
    assert repr(load("digits")) == "Dataset(digits: 1797 of (1, 8, 8), uint8, 10 classes, on cpu)"


def test_batch_of_what_stays_on_the_host() -> None:
    """`meta` stands for a device that the samples are not on."""
    there = torch.device("meta")
    data = Dataset("far", pixels(9, 1, 4, 4), placed=there)
    assert not data.resident and data.device == there
    batch = data.batch(torch.tensor([1, 2]))
    assert batch.device == there and batch.shape == (2, 1, 4, 4) and batch.dtype == torch.float32


def test_host_gather_is_the_same_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset.from_tensor(pixels(9, 1, 5, 5))
    index = torch.tensor([5, 5, 1])
    expected = data.batch(index)
    monkeypatch.setattr(Dataset, "resident", False)
    assert torch.equal(data.batch(index), expected)


class Card:
    """A CUDA device of which only the free memory is real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.moves: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, 2 * free))
        monkeypatch.setattr(Tensor, "to", self._to)

    def _to(self, device: torch.device) -> str:
        self.moves.append(device)
        return "moved"


def test_too_large_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset("large", pixels(1000, 1, 10, 10))
    Card(monkeypatch, free=199_999)
    with pytest.warns(UserWarning, match="large .* stays in host memory") as caught:
        moved = data.to("cuda:0")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert moved.images is data.images
    assert moved.device == torch.device("cuda:0") and not moved.resident
    monkeypatch.undo()
    assert moved.to("cpu").device == torch.device("cpu")


def test_fits_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset("small", pixels(1000, 1, 10, 10))
    card = Card(monkeypatch, free=200_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = data.to("cuda:0")
    assert moved.images == "moved" and card.moves == [torch.device("cuda:0")]
    assert moved.placed is None


def test_what_is_to_stay_on_the_host_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset("small", pixels(1000, 1, 10, 10), file=File(Path("there")))
    card = Card(monkeypatch, free=10**9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = data.to("cuda:0", resident=False)
    assert kept.images is data.images and not card.moves and not kept.resident and kept.file == data.file
    assert data.to("cuda:0").file is None  # what lies on the device is no file
    Card(monkeypatch, free=10)
    with pytest.warns(UserWarning, match="stays on the disk, and training prefetches"):
        data.to("cuda:0")
    monkeypatch.undo()
    assert kept.to("cpu").file == data.file and kept.to("cpu").resident
    assert Dataset("grey", pixels(3, 1, 28, 28), file=File(Path("there"))).fit(image_size=32).file is None


@pytest.mark.gpu
def test_batch_in_a_graph() -> None:
    data = Dataset.from_tensor(pixels(64, 3, 8, 8), torch.arange(64)).to("cuda")
    assert data.resident and data.labels is not None and data.labels.is_cuda
    index = torch.zeros(16, dtype=torch.int64, device="cuda")
    data.batch(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = data.batch(index)
    index.copy_(torch.arange(16, 32))
    graph.replay()
    expected = data.images[16:32].float() / 127.5 - 1
    assert (batch - expected).abs().max() < 1e-6
    assert batch.amin() >= -1 and batch.amax() <= 1


@pytest.mark.gpu
def test_batches_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEVICE_SHARE", 0.0)
    with pytest.warns(UserWarning, match="stays in host memory"):
        data = Dataset.from_tensor(pixels(512, 3, 32, 32), torch.arange(512)).to("cuda")
    assert not data.images.is_cuda and data.labels is not None and data.labels.is_cuda
    index = torch.randint(512, (20, 128), device="cuda")
    batches = [data.batch(rows) for rows in index]  # many in flight: no buffer is taken back too early
    for rows, batch in zip(index, batches, strict=True):
        assert batch.is_cuda
        assert (batch.cpu() - (data.images[rows.cpu()].float() / 127.5 - 1)).abs().max() < 1e-6


def test_pads_28_to_32() -> None:
    data = Dataset.from_tensor(pixels(5, 28, 28))
    padded = data.fit(image_size=32, channels=1)
    assert padded.sample_shape == (1, 32, 32)
    assert torch.equal(padded.images[..., 2:30, 2:30], data.images)
    assert int(padded.images.sum()) == int(data.images.sum())
    assert padded.batch(torch.tensor([0]))[0, 0, 0, 0] == -1

    in_floats = Dataset.from_tensor(floats(5, 1, 28, 28)).fit(image_size=32)
    assert (in_floats.images[..., :2, :] == -1).all() and (in_floats.images[..., 30:] == -1).all()


def test_fit_leaves_what_fits() -> None:
    data = Dataset.from_tensor(pixels(2, 8, 8, 3))
    assert data.fit() is data
    assert data.fit(image_size=8, channels=3) is data


@pytest.mark.parametrize(
    "shape, wanted, message",
    [
        ((2, 28, 28), {"image_size": 64}, "28x28 and the model wants 64x64: set image_size=28, or resize"),
        ((2, 32, 32), {"image_size": 28}, "32x32 and the model wants 28x28"),
        ((2, 28, 28, 3), {"image_size": 32}, "28x28 and the model wants 32x32"),
        ((2, 8, 6), {"image_size": 8}, "8x6 and the model wants 8x8: crop"),
        ((2, 8, 8), {"channels": 3}, "has 1 channel and the model wants 3"),
        ((2, 8, 8, 3), {"channels": 1}, "has 3 channels and the model wants 1"),
    ],
)
def test_misfits(shape: tuple[int, ...], wanted: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dataset.from_tensor(pixels(*shape)).fit(**wanted)


@pytest.mark.parametrize(
    "shape, stored",
    [
        ((6, 9, 8, 3), (6, 3, 9, 8)),
        ((6, 3, 9, 8), (6, 3, 9, 8)),
        ((6, 9, 8, 4), (6, 4, 9, 8)),
        ((6, 9, 8, 1), (6, 1, 9, 8)),
        ((6, 1, 9, 8), (6, 1, 9, 8)),
        ((6, 9, 8), (6, 1, 9, 8)),
    ],
)
def test_layouts_of_pixels(shape: tuple[int, ...], stored: tuple[int, ...]) -> None:
    t = pixels(*shape)
    images = Dataset.from_tensor(t).images
    assert tuple(images.shape) == stored and images.is_contiguous() and images.dtype == torch.uint8
    back = images.permute(0, 2, 3, 1) if len(shape) == 4 and stored != shape else images
    assert torch.equal(back.reshape(shape), t)


def test_layout_said() -> None:
    t = pixels(5, 3, 7, 3)
    assert torch.equal(Dataset.from_tensor(t, layout="NCHW").images, t)
    assert torch.equal(Dataset.from_tensor(t, layout="NHWC").images, t.permute(0, 3, 1, 2))
    wide = floats(5, 6, 7, 2)
    assert torch.equal(Dataset.from_tensor(wide, layout="NHWC").images, wide.permute(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_floats(dtype: torch.dtype) -> None:
    t = floats(6, 3, 5, 5).to(dtype).requires_grad_()
    data = Dataset.from_tensor(t)
    assert data.images.dtype == torch.float32 and not data.images.requires_grad
    assert torch.equal(data.batch(torch.arange(6)), t.detach().float())


def test_points() -> None:
    t = 100 * floats(20, 7)
    data = Dataset.from_tensor(t, name="table")
    assert data.sample_shape == (7,) and torch.equal(data.batch(torch.tensor([3])), t[3:4])


def test_any_strides() -> None:
    t = pixels(6, 3, 9, 8).to(memory_format=torch.channels_last)
    data = Dataset.from_tensor(t)
    assert data.images.is_contiguous() and torch.equal(data.images, t)


def test_labels() -> None:
    data = Dataset.from_tensor(pixels(4, 8, 8), torch.tensor([0, 2, 1, 2], dtype=torch.int32))
    assert data.labels is not None and data.labels.dtype == torch.int64
    assert data.labels.tolist() == [0, 2, 1, 2] and data.classes == ("0", "1", "2")
    named = Dataset.from_tensor(pixels(4, 8, 8), torch.tensor([0, 1, 1, 0]), classes=["cat", "dog"])
    assert named.classes == ("cat", "dog")


def with_value(value: float) -> Tensor:
    t = floats(4, 3, 5, 5)
    t[2, 1, 3, 3] = value
    return t


@pytest.mark.parametrize(
    "t, message",
    [
        (pixels(5, 3, 8, 3), r"\(5, 3, 8, 3\) reads both as NHWC and as NCHW: say layout="),
        (pixels(5, 4, 4, 1), "reads both"),
        (pixels(5, 6, 8, 2), "is not NHWC or NCHW with 1, 3 or 4 channels"),
        (pixels(5, 6), "uint8 images are"),
        (floats(5, 8, 8, 3), "looks like NHWC: permute"),
        (floats(5, 8, 8), "floats are images"),
        (floats(8), "floats are images"),
        (with_value(float("nan")), "NaN or infinite"),
        (with_value(float("inf")), "NaN or infinite"),
        (with_value(1.01), r"must lie in \[-1, 1\]"),
        (with_value(-1.5), "these reach from -1.5 to"),
        (torch.full((3, 2), float("nan")), "NaN or infinite"),
        (pixels(0, 8, 8, 3), "nothing is in it"),
        (floats(5, 0), "nothing is in it"),
        (pixels(5, 8, 8).long(), "the images are int64: make them uint8"),
        (pixels(5, 8, 8) > 3, "the images are bool"),
        (pixels(5, 8, 8).numpy(), "not ndarray: wrap it in torch.as_tensor"),
    ],
)
def test_refused_tensors(t: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dataset.from_tensor(t)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.tensor([0.0, 1, 1, 0]), "must be integers in a tensor, not float32"),
        (torch.tensor([True, False, True, True]), "not bool"),
        ([0, 1, 1, 0], "not list"),
        (torch.tensor([0, 1, 1]), r"need labels of shape \(4,\), not \(3,\)"),
        (torch.tensor([[0], [1], [1], [0]]), r"not \(4, 1\)"),
        (torch.tensor([0, -1, 1, 0]), "labels reach from -1 to 1"),
        (torch.tensor([0, 2**40, 1, 0]), "number the classes from 0"),
    ],
)
def test_refused_labels(labels: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dataset.from_tensor(pixels(4, 8, 8), labels)


def test_names_too_few_and_layout_unknown() -> None:
    with pytest.raises(UserError, match="from 0 to at most 1"):
        Dataset.from_tensor(pixels(3, 8, 8), torch.tensor([0, 1, 2]), classes=["cat", "dog"])
    with pytest.raises(UserError, match="unknown layout 'nhcw'"):
        Dataset.from_tensor(pixels(3, 8, 8, 3), layout="nhcw")


def test_the_range_0_to_1_is_doubted() -> None:
    with pytest.warns(UserWarning, match=r"pass 2 \* x - 1") as caught:
        Dataset.from_tensor(floats(4, 1, 5, 5).abs())
    assert caught[0].filename == __file__
