"""What the optimisers' table says of tensors: memory orders, gaps, overlaps, numbers on the host and on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fastgan
from fastgan.ops import optimizer_step as ops
from fastgan.ops.optimizer_table import Entry, Table, dense, in_turns, laid_as, lies_as, shadow_of, turn


def entry(param: Tensor, shadow: Tensor | None = None) -> Entry:
    return Entry(param, (None, None, None), None, None, shadow, 0)


@given(sizes=st.lists(st.integers(0, 4), max_size=4), data=st.data())
def test_dense_is_without_gaps(sizes: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(sizes))))
    values = torch.zeros(sizes).permute(order)
    assert dense(values)
    if values.numel() > 1:
        at = data.draw(st.sampled_from([d for d in range(values.dim()) if values.shape[d] > 1]))
        gaps = torch.zeros([size * 2 if d == at else size for d, size in enumerate(values.shape)])
        assert not dense(gaps[(slice(None),) * at + (slice(None, None, 2),)])
        assert not dense(values.select(at, 0).unsqueeze(at).expand(values.shape))


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), data=st.data())
def test_turned_shadows_are_where_the_table_says(sizes: list[int], data: st.DataObject) -> None:
    """The formula of the kernel, on every memory order that is turned at all."""
    order = data.draw(st.permutations(range(len(sizes))) | st.just(list(range(len(sizes)))))
    param = torch.arange(int(np.prod(sizes))).reshape([sizes[d] for d in order])
    param = param.permute([order.index(d) for d in range(len(sizes))])
    shadow = shadow_of(param, torch.float64)
    assert torch.equal(shadow, param.double())
    way = turn(param, shadow)
    if way is not None:
        channels, taps = way
        at = torch.arange(param.numel())  # the parameter's values are its own places in memory
        outer, inner = at // (channels * taps), at % (channels * taps)
        place = (outer * taps + inner % taps) * channels + inner // taps
        held = torch.as_strided(shadow, (param.numel(),), (1,))
        assert torch.equal(held[place], at.double())


def test_overlapping_parameters_take_turns() -> None:
    base = torch.zeros(100)
    spans = [(0, 10), (10, 20), (15, 30), (40, 50), (5, 18), (60, 60)]
    entries = [entry(base[begin:end]) for begin, end in spans]
    apart = [entries[at] for at in (0, 1, 3, 5)]
    assert in_turns(apart) == [apart] and in_turns([]) == []
    assert [len(turn) for turn in in_turns([entries[0], entries[0]])] == [1, 1, 1]
    turns = in_turns(entries)
    began = [[(e.param.storage_offset(), e.moves) for e in its] for its in turns]
    assert [[at for at, _ in its] for its in began[:-1]] == [[0, 10, 40, 60], [15], [5]]
    assert [at for at, moves in began[-1] if not moves] == [0, 10, 15, 40, 5, 60]


def test_gradients_are_copied_only_where_they_lie_otherwise() -> None:
    param, gradient = torch.zeros(3, 4), torch.randn(4, 3).t()
    assert laid_as(param, param) is param
    copied = laid_as(gradient, param)
    assert copied.stride() == param.stride() and torch.equal(copied, gradient)
    assert laid_as(param.half(), param).dtype == torch.float32
    narrow = torch.zeros(4, 6, 1, 1)  # strides of a dimension of size 1 say nothing
    assert lies_as(narrow.contiguous(memory_format=torch.channels_last).as_strided((4, 6, 1, 1), (6, 1, 6, 6)), narrow)
    assert not lies_as(torch.zeros(1).expand(4, 6, 1, 1), narrow)


def test_programs_are_shared_out_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from fastgan.kernels.optimizer_step import BLOCK, SIZE

    sizes = (1, 0, BLOCK, 5 * BLOCK + 1)
    few = Table([entry(torch.zeros(size)) for size in sizes])
    assert few.rounds == 1 and few.table[:, SIZE.value].tolist() == list(sizes)
    assert few.blocks.tolist() == [[0, 0], [2, 0], *([3, at] for at in range(6))]
    monkeypatch.setattr("fastgan.ops.optimizer_table.PROGRAMS", 2)
    many = Table([entry(torch.zeros(size)) for size in sizes])
    assert many.rounds == 3 and many.blocks.tolist() == [[0, 0], [2, 0], [3, 0], [3, 1]]
    assert Table([entry(torch.zeros(0))]).blocks.tolist() == [[0, 0]]


def test_addresses_are_sent_only_when_they_change() -> None:
    pytest.importorskip("triton")
    table, bits = Table([entry(torch.zeros(3)), entry(torch.zeros(4))]), ops.bits_of([[0.5] * ops.NUMBERS], CPU)[0]
    first = table.moving([16, 0], bits)
    assert first[:2].tolist() == [16, 0] and first[2:].view(torch.float64)[::2].tolist() == [0.5] * ops.NUMBERS
    assert table.moving([16, 0], bits) is first
    assert table.moving([16, 32], bits) is not first
    assert table.moving([16, 32], ops.bits_of([[0.25] * ops.NUMBERS], CPU)[0])[2:].view(torch.float64)[0] == 0.25


def test_numbers_on_the_device_are_told_by_their_address() -> None:
    single, double = torch.tensor(0.5), torch.tensor(0.25, dtype=torch.float64)
    bits, scalars = ops.bits_of([[1.0, single, double, *[0.0] * 8]], CPU)
    pairs = bits.reshape(ops.NUMBERS, 2)
    assert pairs[:, 1].tolist() == [0, *(t.data_ptr() for t in scalars), *[0] * 8]
    assert scalars[0] is single and scalars[1].dtype == torch.float32 and float(scalars[1]) == 0.25
    meta = ops.bits_of([[single] * ops.NUMBERS], torch.device("meta"))  # a tensor elsewhere is read now
    assert meta[1] == [] and meta[0].view(np.float64)[0] == 0.5


def test_what_the_kernels_take() -> None:
    plain = nn.Parameter(torch.zeros(4, 6))
    assert not ops.takes(plain)  # the CPU goes by PyTorch
    if not fastgan.ops.backend._interpreted():
        return
    with fastgan.backend("triton"):
        assert ops.takes(plain) and ops.takes(plain.detach().half().t())
        for other in (plain[:, ::2], plain.double(), plain.to(torch.complex64), plain.bfloat16(), plain.to_sparse()):
            assert not ops.takes(other.detach())


CPU = torch.device("cpu")
