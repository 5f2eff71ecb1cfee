"""The table that says where an iteration in one launch is the faster way."""

import json

import pytest
import torch

from fastgan.ops import mlp_step_measured
from fastgan.ops.mlp_step_measured import Entry, Size, faster, nearest, place, read, told, write

GPU = "NVIDIA H200"
SLOW = Entry(1_000_000, 256, 2, 0, 90.0, 80.0)
FAST = Entry(1_000_000, 64, 2, 0, 40.0, 80.0)
SIDE_BY_SIDE = Entry(1000, 100, 2, 132, 300.0, 900.0)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU)


def test_the_nearest_size_decides_and_says_so():
    device = torch.device("cuda", 0)
    assert faster(device, Size(1_000_000, 64, 2)) == (False, f"not measured on {GPU}: {mlp_step_measured.MEASURE}")
    assert "not measured" in told(GPU)
    assert write(GPU, [SLOW, FAST]) == place(GPU) == write(GPU, [SIDE_BY_SIDE])
    assert read(GPU) == [SLOW, FAST, SIDE_BY_SIDE]
    assert faster(device, Size(1_200_000, 64, 2)) == (True, f"measured on {GPU}: 40.0 us, a replayed graph 80.0 us")
    assert not faster(device, Size(1_000_000, 200, 2))[0]
    assert faster(device, Size(1100, 100, 2, 100))[0]
    assert "2 of 3 sizes" in told(GPU)
    assert faster(torch.device("cpu"), Size(1, 1, 1)) == (False, "it needs a GPU")


def test_what_is_far_off_says_nothing():
    entries = [SLOW, FAST, SIDE_BY_SIDE]
    for size in (Size(1_000_000, 24, 2), Size(3_000_000, 64, 2), Size(1_000_000, 64, 3), Size(1000, 100, 2)):
        assert nearest(entries, size) is None
    assert nearest(entries, Size(1000, 100, 2, 500)) is None
    assert nearest(entries, Size(1_000_000, 130, 2)) == SLOW


def test_a_table_of_another_form_is_none():
    write(GPU, [FAST])
    body = json.loads(place(GPU).read_text())
    for broken in ({**body, "format": "other"}, {**body, "entries": [{"us": 1}]}, {"format": body["format"]}, []):
        place(GPU).write_text(json.dumps(broken))
        assert read(GPU) == []
    place(GPU).write_text("{")
    assert read(GPU) == []
