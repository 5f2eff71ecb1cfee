"""Real batches as functions of a clock: which samples, what is done to them, and where they are put."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.data.dataset import normalise
from fastgan.errors import UserError
from fastgan.ops.real_batch import chosen, mirrored, normalised, real_batch

SITE = (1, 0)


class NothingOfTheHost(TorchDispatchMode):
    """Runs what a capture would record, and refuses what it could not."""

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert call not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), call
        return call(*args, **(kwargs or {}))


def clock(ticks: int = 0, device: str = "cpu") -> Tensor:
    return torch.tensor(ticks, device=device)


def pixels(*shape: int, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def batch(images: Tensor, at: Tensor, batch_size: int = 6, **more: Any) -> Any:
    return real_batch(images, at, **{"batch_size": batch_size, "seed": 3, "site": SITE, **more})


def test_pixels_are_normalised_as_the_data_set_does() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(normalised(every), normalise(every))


@pytest.mark.parametrize("n, batch_size", [(12, 4), (13, 4), (9, 9), (5, 1), (9000, 4500), (8200, 40)])
def test_an_epoch_takes_each_sample_once(n: int, batch_size: int) -> None:
    """But for the ragged rest, of other samples in each epoch. Small batches are shuffled ahead of their time."""
    seen = []
    for epoch in range(3):
        ticks = range(epoch * (n // batch_size), (epoch + 1) * (n // batch_size))
        if len(ticks) > 20:  # the first and the last few
            ticks = [*ticks[:2], *ticks[100:106], *ticks[-2:]]
        drawn = torch.cat([chosen(clock(t), n=n, batch_size=batch_size, seed=3, site=SITE) for t in ticks])
        assert len(drawn.unique()) == len(ticks) * batch_size and drawn.min() >= 0 and drawn.max() < n
        seen.append(tuple(drawn.tolist()))
    assert len(set(seen)) == 3
    if n == 13:
        assert len({(set(range(13)) - set(order)).pop() for order in seen}) > 1


@pytest.mark.parametrize("ticks", [0, 1, 17, 2**33])
@pytest.mark.parametrize("site", [(1, 0), (3, 2)])
def test_captures_see_the_same_batch(ticks: int, site: tuple[int, int]) -> None:
    images, labels, noise = pixels(50, 3, 4, 5), torch.arange(50), torch.tensor(0.2)
    how = {"site": site, "flip": True, "noise": noise, "labels": labels}
    with NothingOfTheHost():
        captured, its = batch(images, clock(ticks), **how)
    eager, theirs = batch(images, clock(ticks), **how)
    assert torch.equal(captured, eager) and torch.equal(its, theirs)


def test_a_batch_is_the_samples_that_are_chosen() -> None:
    images, labels, at = pixels(50, 3, 4, 5), torch.arange(50) * 7, clock()
    points = torch.randn(50, 2)
    for t in (0, 1, 9, 100):
        index = chosen(at.fill_(t), n=50, batch_size=6, seed=3, site=SITE)
        drawn, its = batch(images, at, labels=labels)
        assert torch.equal(drawn, normalise(images[index])) and torch.equal(its, labels[index])
        assert torch.equal(batch(points, at), points[index]) and not drawn.requires_grad
    assert not torch.equal(batch(images, at, seed=4), drawn)
    assert torch.equal(batch(images, clock(3), site=(2, 1)), batch(images, clock(7)))


@pytest.mark.parametrize("site", [(1, 0), (2, 1)])
def test_a_ring_of_batches_is_what_the_data_would_have_given(site: tuple[int, int]) -> None:
    """Batches that were gathered by their numbers, each at its number's place; captured or not."""
    images, labels, places = pixels(50, 3, 4, 5), torch.arange(50), 4
    ring, marks = torch.zeros(places * 6, 3, 4, 5, dtype=torch.uint8), torch.zeros(places * 6, dtype=torch.int64)
    how = {"site": site, "flip": True, "noise": torch.tensor(0.2)}
    for ticks in (0, 1, 2, 3, 4, 17, 2**33):
        count = ticks * site[0] + site[1]
        index, at = chosen(clock(count), n=50, batch_size=6, seed=3, site=SITE), count % places * 6
        ring[at : at + 6], marks[at : at + 6] = images[index], labels[index]
        want, theirs = batch(images, clock(ticks), labels=labels, **how)
        with NothingOfTheHost():
            captured, _ = batch(ring, clock(ticks), labels=marks, in_order=True, **how)
        drawn, its = batch(ring, clock(ticks), labels=marks, in_order=True, **how)
        assert torch.equal(drawn, want) and torch.equal(its, theirs) and torch.equal(captured, want)


@pytest.mark.parametrize("part", [(0, 2), (2, 4), (5, 1)])
def test_a_ring_of_parts_is_what_a_part_would_have_been(part: tuple[int, int]) -> None:
    """What one of several processes gathered of each batch, and nothing else."""
    images, labels, places, (first, rows) = pixels(50, 3, 4, 5), torch.arange(50), 3, part
    ring, marks = torch.zeros(places * rows, 3, 4, 5, dtype=torch.uint8), torch.zeros(places * rows, dtype=torch.int64)
    how = {"site": (2, 1), "flip": True, "noise": torch.tensor(0.2), "part": part}
    for ticks in (0, 1, 2, 17, 2**33):
        count = ticks * 2 + 1
        index = chosen(clock(count), n=50, batch_size=6, seed=3, site=SITE)[first:][:rows]
        at = count % places * rows
        ring[at : at + rows], marks[at : at + rows] = images[index], labels[index]
        want, theirs = batch(images, clock(ticks), labels=labels, **how)
        with NothingOfTheHost():
            captured, _ = batch(ring, clock(ticks), labels=marks, in_order=True, **how)
        drawn, its = batch(ring, clock(ticks), labels=marks, in_order=True, **how)
        assert torch.equal(drawn, want) and torch.equal(its, theirs) and torch.equal(captured, want)


def test_half_of_the_images_are_mirrored() -> None:
    images = pixels(400, 2, 3, 5)
    turned = []
    for t in range(10):
        plain, flipped = batch(images, clock(t), 400), batch(images, clock(t), 400, flip=True)
        same = (plain == flipped).flatten(1).all(1)
        assert torch.equal(flipped, torch.where(same.view(-1, 1, 1, 1), plain, plain.flip(-1)))
        turned.append(~same)
    share = torch.stack(turned).double()
    assert abs(share.mean() - 0.5) < 4.5 / math.sqrt(4 * share.numel())
    assert len({tuple(row.tolist()) for row in turned}) == 10


def test_mirrored_is_one_bit_a_row() -> None:
    bits = mirrored(64, torch.tensor([1, 2]))
    assert 15 < bits.sum() < 49 and torch.equal(bits[:10], mirrored(10, torch.tensor([1, 2])))


def test_noise_is_sigma_times_normal_and_new_for_each_element() -> None:
    images = torch.zeros(40, 3, 33, 31)
    sigma = torch.tensor(0.5)
    first, second = (batch(images, clock(t), 40, noise=sigma).double() for t in range(2))
    count = first.numel()
    assert abs(first.mean()) < 4.5 * 0.5 / math.sqrt(count) and abs(first.std() / 0.5 - 1) < 4.5 / math.sqrt(2 * count)
    for one, other in (
        (first, second),
        (first[1:], first[:-1]),
        (first[:, 1:], first[:, :-1]),
        (first[..., 1:, :], first[..., :-1, :]),
        (first[..., 1:], first[..., :-1]),
    ):
        pair = torch.stack((one.flatten(), other.flatten()))
        assert abs(torch.corrcoef(pair)[0, 1]) < 4.5 / math.sqrt(pair.shape[1])
    sigma.zero_()
    assert torch.equal(batch(images, clock(), 40, noise=sigma), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layout_and_dtype_change_no_value(dtype: torch.dtype) -> None:
    images, how = pixels(20, 3, 4, 5), {"flip": True, "noise": torch.tensor(0.1)}
    plain = batch(images, clock(), **how)
    last = batch(images, clock(), **how, dtype=dtype, memory_format=torch.channels_last)
    assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, plain.to(dtype))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_of_a_buffer_is_filled(layout: torch.memory_format) -> None:
    both = torch.full((12, 3, 4, 5), 9.0, dtype=torch.bfloat16).contiguous(memory_format=layout)
    images, half = pixels(20, 3, 4, 5), both[:6]
    assert batch(images, clock(), out=half) is half
    assert torch.equal(both[:6], batch(images, clock(), dtype=torch.bfloat16)) and (both[6:] == 9).all()
    rows = torch.full((6, 5), 9.0)
    batch(torch.randn(20, 3), clock(), out=rows[:, :3])
    assert (rows[:, :3] != 9).all() and (rows[:, 3:] == 9).all()


def test_compilers_see_the_same_batch() -> None:
    images, labels = pixels(20, 3, 4, 5), torch.arange(20)
    compiled = torch.compile(lambda at: batch(images, at, labels=labels, flip=True), backend="eager", fullgraph=True)
    for one, other in zip(compiled(clock(8)), batch(images, clock(8), labels=labels, flip=True), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"images": torch.zeros(9, 3, 4)}, "images have to be"),
        ({"images": torch.zeros(9, 3, dtype=torch.int64)}, "images have to be"),
        ({"images": torch.zeros(3, 9).T}, "contiguous"),
        ({"images": torch.zeros(0, 3)}, "batch_size"),
        ({"batch_size": 10}, "9 samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"clock": torch.zeros(())}, "clock"),
        ({"site": (2, 2)}, "site"),
        ({"seed": 2**64}, "64 bits"),
        ({"images": torch.zeros(9, 3), "flip": True}, "flip"),
        ({"noise": torch.zeros(1)}, "noise"),
        ({"noise": torch.zeros((), dtype=torch.float64)}, "noise"),
        ({"labels": torch.zeros(8, dtype=torch.int64)}, "labels"),
        ({"labels": torch.zeros(9)}, "labels"),
        ({"dtype": torch.float64}, "not float64"),
        ({"out": torch.empty(6, 1, 2, 3)}, "out has to be"),
        ({"out": torch.empty(6, 1, 2, 2), "dtype": torch.float16}, "out has to be"),
        ({"out": torch.empty(6, 1, 2, 4)[..., :2]}, "dense"),
        ({"out": torch.empty(1, 1, 2, 2).expand(6, 1, 2, 2)}, "apart"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], message: str) -> None:
    right = {"images": pixels(9, 1, 2, 2), "clock": clock(), "batch_size": 6, "seed": 0, "site": SITE}
    with pytest.raises(UserError, match=message) as error:
        real_batch(**{**right, **wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", [(0, 3), (3, 3), (5, 1)])
def test_a_part_of_a_batch_has_its_bits(part: tuple[int, int]) -> None:
    images, labels = pixels(20, 3, 5, 4), torch.arange(20)
    how = {"flip": True, "noise": torch.tensor(0.3), "labels": labels}
    whole, its = batch(images, clock(5), **how)
    drawn, picked = batch(images, clock(5), **how, part=part)
    rows = slice(part[0], sum(part))
    assert torch.equal(drawn, whole[rows]) and torch.equal(picked, its[rows])
    for wrong in ((4, 3), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match="of a batch of 6"):
            batch(images, clock(), part=wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_graph_replays_the_batches_of_the_cpu(backend: str) -> None:
    """Captured once; the clock moves inside the graph."""
    images, labels, at, sigma = pixels(50, 3, 8, 9), torch.arange(50), clock(0, "cuda"), torch.tensor(0.0)
    there, how = images.cuda(), {"flip": True, "labels": labels.cuda(), "noise": sigma.cuda()}
    with fastgan.backend(backend):
        batch(there, at, **how)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            drawn, its = batch(there, at, **how)
            at.add_(1)
    assert drawn.is_contiguous(memory_format=torch.channels_last)
    for t in range(20):
        how["noise"].fill_(t / 20)
        graph.replay()
        want, theirs = batch(images, clock(t), flip=True, labels=labels, noise=torch.tensor(t / 20))
        assert torch.equal(its.cpu(), theirs)
        torch.testing.assert_close(drawn.cpu(), want, rtol=0, atol=4e-6 if t else 0)
