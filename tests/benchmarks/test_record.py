"""The record: what the schema demands, how it is written, what it says of the machine."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan.benchmarks.environment import environment
from fastgan.benchmarks.record import Ceilings, Check, Compiled, Record, Spread, Timed, validate, write
from fastgan.benchmarks.setting import Setting

jsonschema = pytest.importorskip("jsonschema")


def record(*rows: Timed | Compiled) -> Record:
    ceilings = Ceilings(10.0, {"float32": 0.1}, {"eager": 3.0})
    return Record("test", ["test", "--smoke"], True, None, environment(Setting()), ceilings, list(rows))


def timed(**changes: Any) -> Timed:
    fields = {"dtype": "float32", "check": Check(True, 0.0, 1e-6), "wall_us": Spread(2.0, 1.0, 3.0, 20), **changes}
    return Timed("w", "v", "4x4", **fields)


def test_a_record_of_both_kinds_of_rows_is_valid_and_reads_back(tmp_path: Path) -> None:
    whole = record(timed(), Compiled("linear", "k", "v", 90, ["spills"], instructions={"wgmma": 4}))
    whole.leave_out("another", "the budget was spent")
    write(whole, tmp_path / "deep" / "r.json")
    body = json.loads((tmp_path / "deep" / "r.json").read_text(encoding="utf-8"))
    assert body == whole.to_json()
    assert [row["kind"] for row in body["rows"]] == ["timed", "compiled"]
    assert body["rows"][0]["graph_us"] is None
    assert body["environment"]["device"] == "CPU"
    assert body["environment"]["driver"] is None


@pytest.mark.parametrize(
    "row",
    [
        timed(check=Check(False, 1.0, 0.1, "wrong")),
        timed(check=None),
        timed(check=None, wall_us=None, tflops=1.0),
        timed(wall_us=Spread(0.0, 0.0, 0.0, 20)),
        timed(l2="warm"),
        timed(dtype=None),
        timed(peak_bytes=1.5),
        Compiled("linear", "k", "v", 90, registers=-1),
    ],
)
def test_what_must_not_stand_in_a_record_is_refused(row: Timed | Compiled, tmp_path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        write(record(row), tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_were_not_run_or_failed_are_valid_without_times() -> None:
    validate(record(timed(check=None, wall_us=None, note="not measured: no GPU")).to_json())
    validate(record(timed(check=Check(False, why="wrong"), wall_us=None)).to_json())


@pytest.mark.parametrize("change", [("environment", "torch"), ("ceilings", "copy_gbs"), ("rows", 0, "check")])
def test_no_field_may_be_missing_or_unknown(change: tuple[Any, ...]) -> None:
    body = record(timed()).to_json()
    for broken, act in ((copy.deepcopy(body), "drop"), (copy.deepcopy(body), "add")):
        place: Any = broken
        for key in change[:-1]:
            place = place[key]
        if act == "drop":
            del place[change[-1]]
        else:
            place["surprise"] = 1
        with pytest.raises(jsonschema.ValidationError):
            validate(broken)


def test_a_write_that_fails_leaves_the_old_record(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write(record(timed()), path)
    before = path.read_bytes()
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        write(record(timed(wall_us=Spread(float("nan"), 1.0, 1.0, 3))), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_a_spread_and_its_band() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0, 100.0]) == Spread(3.5, 2.0, 5.0, 6)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)
    near, far = Spread(10.0, 9.9, 10.1, 20), Spread(12.0, 11.5, 12.5, 20)
    assert near.differs(far)
    assert far.differs(near)
    assert not near.differs(Spread(10.5, 10.4, 10.6, 20))  # apart, but by less than the band
    assert not near.differs(Spread(12.0, 10.0, 14.0, 20))  # far, but they overlap


def test_a_floor_needs_its_ceilings() -> None:
    ceilings = Ceilings(1000.0, {"bfloat16": 100.0})
    assert ceilings.floor_us("bfloat16", 1e9, None) == pytest.approx(10.0)
    assert ceilings.floor_us("float32", None, 1e6) == pytest.approx(1.0)
    assert ceilings.floor_us("bfloat16", 1e9, 1e9) == pytest.approx(1000.0)
    assert ceilings.floor_us("float32", 1e9, 1e6) is None
    assert ceilings.floor_us("float32", None, None) is None
    assert Ceilings().floor_us("bfloat16", None, 1.0) is None


def test_the_environment_names_the_versions_that_run() -> None:
    block = environment(Setting())
    assert block["torch"] == torch.__version__
    assert block["date"].endswith("+00:00")
    assert (block["commit"] is None) == (block["dirty"] is None)
