"""Tuned tables: which entry a problem takes, and that no table, however broken, stops a launch."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
from fastgan.data.places import cache_folder
from fastgan.kernels import tables, tile
from fastgan.kernels.problem import Config, Problem, Target, refusal, useful
from fastgan.kernels.tables import NEAR, Entry, distance, merged, nearest, read, write

GPU = "a-card"
TARGET = Target(90, "tf32", GPU, 132)
PROBLEM = Problem("linear_fwd", 64, 512, 1024, 2, TARGET, splits=True)
CHOSEN = Config(16, 128, 64, 4, 255, 4, 8)  # not of the short list: only a table can have chosen it
ENTRY = Entry("linear_fwd", "16-bit", False, True, 64, 512, 1024, CHOSEN, 5.0, 7.0, "torch 2.13.0, triton 3.7.1")

Put = Callable[..., Path]


@pytest.fixture(autouse=True)
def chosen_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "PACKAGED", tmp_path / "package")
    tile.forget()
    yield
    tile.forget()


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def table(*entries: Entry, place: str = "cache/tuned") -> Path:
        path = tmp_path / place / f"{GPU}.json"
        write(path, GPU, {"device": "A Card"}, entries)
        tile.forget()
        return path

    return table


def test_without_a_table_the_heuristic_chooses() -> None:
    assert nearest(PROBLEM) is None
    assert tile.choose(PROBLEM) == tile.heuristic(PROBLEM) != CHOSEN


def test_what_is_written_is_read_and_chosen(put: Put) -> None:
    path = put(ENTRY)
    assert read(path, GPU) == [ENTRY]
    assert tile.choose(PROBLEM) == CHOSEN
    assert tile.choose(replace(PROBLEM, target=replace(TARGET, gpu="another"))) != CHOSEN
    assert tile.choose(replace(PROBLEM, target=replace(TARGET, gpu=None))) != CHOSEN
    assert path.stat().st_mode & 0o777 == 0o644
    assert [other.name for other in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "other",
    [
        {"op": "linear_bwd_input"},
        {"op": "linear_norm"},
        {"vectors": False},
        {"item_bytes": 4},
        {"rows": 64 * 8},
        {"rows": 128, "cols": 1024, "depth": 2048},
        {"rows": 4},  # 16 times fewer
        {"depth": 256},  # too little for 8 programs
        {"splits": False},
        {"cols": 512 // 4, "target": replace(TARGET, precision="ieee"), "item_bytes": 4},
    ],
)
def test_an_entry_holds_for_its_own_kind_of_problem_and_its_neighbourhood(put: Put, other: dict[str, Any]) -> None:
    put(ENTRY)
    problem = replace(PROBLEM, **other)
    assert nearest(problem) is None
    assert tile.choose(problem) == tile.heuristic(problem)
    assert nearest(replace(PROBLEM, rows=100, cols=600, depth=1100)) == ENTRY


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_the_nearest_that_can_be_run_is_taken(put: Put, data: st.DataObject) -> None:
    """Against the definition, over all entries."""
    sizes = st.tuples(*[st.sampled_from([1, 16, 60, 64, 100, 128, 500, 512, 1024])] * 3)
    small, large = Config(64, 64, 64, 4, 255), Config(128, 256, 64, 8, 255, 4)
    tiles = st.sampled_from([CHOSEN, small, large, Config(32, 32, 64, 4, 99)])
    entries = merged(
        [],
        [
            replace(ENTRY, rows=rows, cols=cols, depth=depth, config=config)
            for (rows, cols, depth), config in data.draw(st.lists(st.tuples(sizes, tiles), max_size=6))
        ],
    )
    put(*entries)
    rows, cols, depth = data.draw(sizes)
    problem = replace(PROBLEM, rows=rows, cols=cols, depth=depth)
    fit = [
        entry
        for entry in entries
        if refusal(problem, entry.config) is None and useful(problem, entry.config) and distance(problem, entry) <= NEAR
    ]
    expected = min((distance(problem, entry) for entry in fit), default=None)
    found = nearest(problem)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found in fit and distance(problem, found) == expected


def test_kin_tells_where_nothing_else_does(put: Put) -> None:
    """A mask more or less, or an operand normalised in passing: the plain product's tile, where it can be run."""
    masked, normal = replace(PROBLEM, masked=True), replace(PROBLEM, op="linear_fwd_norm", accumulators=32)
    put(ENTRY)
    assert nearest(masked) == nearest(normal) == nearest(replace(normal, masked=True)) == ENTRY
    own = replace(ENTRY, masked=True, rows=32)
    put(ENTRY, own)
    assert nearest(masked) == own and nearest(PROBLEM) == nearest(normal) == ENTRY
    put(replace(ENTRY, config=Config(128, 128, 64, 8, 255)))
    large = replace(normal, rows=128)
    assert nearest(large) is None and nearest(replace(large, accumulators=64)) is not None


def test_what_this_machine_measured_goes_before_what_the_package_brings(put: Put) -> None:
    packaged = replace(CHOSEN, split=2)
    put(replace(ENTRY, config=packaged), replace(ENTRY, rows=1024, config=packaged), place="package")
    assert tile.choose(PROBLEM) == packaged
    put(replace(ENTRY, rows=32))
    assert tile.choose(PROBLEM) == CHOSEN  # though farther
    assert tile.choose(replace(PROBLEM, rows=1024)) == packaged


def test_the_library_is_preferred_where_it_was_faster(put: Put) -> None:
    put(ENTRY)
    assert not tile.prefers_library(PROBLEM)
    put(replace(ENTRY, library_us=4.9))
    assert tile.prefers_library(PROBLEM)
    put(replace(ENTRY, library_us=None))
    assert not tile.prefers_library(PROBLEM)  # a launch-bound problem, by estimate


BROKEN: list[tuple[str, str]] = [
    ("", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("\udcff\udcfe", "not JSON"),
    ("[]", "format"),
    ('{"format": "fastgan-tuned/2"}', "format"),
    ('{"format": "fastgan-tuned/1", "gpu": "nvidia-h200", "entries": []}', "for 'nvidia-h200', not for 'a-card'"),
    ('{"format": "fastgan-tuned/1", "gpu": "a-card"}', "no list of entries"),
    ('{"format": "fastgan-tuned/1", "gpu": "a-card", "entries": [7]}', "entry 0 is not an object"),
]


@pytest.mark.parametrize("text, why", BROKEN)
def test_a_broken_table_is_named_once_and_passed_over(put: Put, text: str, why: str) -> None:
    path = put(ENTRY)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.warns(RuntimeWarning, match="tuned table") as caught:
        assert tile.choose(PROBLEM) == tile.heuristic(PROBLEM)
    assert len(caught) == 1
    assert str(path) in str(caught[0].message) and why in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tile.choose(replace(PROBLEM, rows=65))


@pytest.mark.parametrize(
    "place, value",
    [
        ("rows", 0),
        ("rows", "64"),
        ("rows", True),
        ("rows", 64.0),
        ("masked", 0),
        ("op", None),
        ("us", -1),
        ("us", 0),
        ("us", "Infinity"),
        ("library_us", "fast"),
        ("library_us", -0.1),
        ("config", []),
        ("config.rows", 48),
        ("config.cols", 8),
        ("config.depth", None),
        ("config.warps", 3),
        ("config.split", 0),
        ("config.stages", -1),
    ],
)
def test_each_field_of_an_entry_is_checked(put: Put, place: str, value: object) -> None:
    path = put(ENTRY, replace(ENTRY, rows=128))
    body = json.loads(path.read_text(encoding="utf-8"))
    *outer, field = place.split(".")
    inner = body["entries"][1]["config"] if outer else body["entries"][1]
    inner[field] = float("inf") if value == "Infinity" else value
    path.write_text(json.dumps(body), encoding="utf-8")
    with pytest.warns(RuntimeWarning, match=f"entry 1.*{field}"):
        assert tile.choose(PROBLEM) == tile.heuristic(PROBLEM)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_no_damage_to_a_table_stops_a_launch(put: Put, at: int, byte: int, cut: bool) -> None:
    path = put(ENTRY)
    raw = bytearray(path.read_bytes())
    at %= len(raw)
    if cut:
        del raw[at:]
    else:
        raw[at] = byte
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = tile.choose(PROBLEM)
    assert refusal(PROBLEM, config) is None


def test_a_table_that_may_not_be_read_is_passed_over(put: Put) -> None:
    path = put(ENTRY)
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="passed over"):
        assert tile.choose(PROBLEM) == tile.heuristic(PROBLEM)


def test_newer_entries_replace_older_ones_of_the_same_problem() -> None:
    newer, other = replace(ENTRY, us=4.0), replace(ENTRY, rows=32)
    assert merged([ENTRY, other], [newer]) == [other, newer]
    assert merged([], [ENTRY, newer]) == [newer]


def test_a_failed_write_leaves_the_old_table(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(ENTRY)

    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        write(path, GPU, {}, [])
    assert read(path, GPU) == [ENTRY]
    assert [other.name for other in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("variables", [{"FASTGAN_CACHE": "/c"}, {"XDG_CACHE_HOME": "/x"}, {}])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_tables_lie_in_the_same_cache_as_everything(
    platform: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    for name in ("FASTGAN_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tables.local_path(GPU) == cache_folder() / "tuned" / f"{GPU}.json"


def test_tables_of_the_package_are_whole() -> None:
    for path in sorted((Path(tables.__file__).parent / "tuned").glob("*.json")):
        assert read(path, path.stem)
