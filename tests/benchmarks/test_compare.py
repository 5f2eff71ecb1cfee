"""Two records side by side: a planted slow-down is found, noise is not, and what is missing is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastgan.benchmarks import main
from fastgan.benchmarks.compare import BAND, identities, pairs
from fastgan.benchmarks.environment import environment
from fastgan.benchmarks.record import Check, Compiled, Record, Row, Spread, Timed, write
from fastgan.benchmarks.setting import Setting

Output = pytest.CaptureFixture[str]


def timed(workload: str, us: float, **changes: object) -> Timed:
    spread = Spread(us, 0.98 * us, 1.03 * us, 20)
    fields: dict[str, object] = {"wall_us": spread, "check": Check(True, 0.0, 1e-6), "suite": "linear", **changes}
    return Timed(workload, "fastgan auto", "4x4", "bfloat16", **fields)  # type: ignore[arg-type]


def record(rows: Sequence[Row], device: str = "NVIDIA H200") -> Record:
    block = environment(Setting()) | {"device": device}
    return Record("linear", ["linear"], False, None, block, rows=list(rows))


def run(a: Record, b: Record, tmp_path: Path, *options: str) -> int:
    write(a, tmp_path / "a.json")
    write(b, tmp_path / "b.json")
    return main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options])


def test_a_planted_slow_down_ends_with_1_and_a_table(tmp_path: Path, capsys: Output) -> None:
    a = record([timed("even", 10.0), timed("slow", 10.0), timed("fast", 10.0), timed("gone", 10.0)])
    b = record([timed("fast", 5.0), timed("even", 10.4), timed("slow", 20.0), timed("new", 1.0)])
    assert run(a, b, tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "fastgan auto  4x4" in line] == ["slow", "fast"]  # the worst first
    assert any("2.00x  SLOWER" in line for line in lines)
    assert lines[-2] == "3 rows in common: 1 SLOWER, 0 BROKEN, 1 faster, 1 the same"
    assert lines[-1] == "1 rows of A were not measured in B: gone fastgan auto 4x4 bfloat16"
    assert run(b, a, tmp_path) == 1  # what was faster is slower the other way round
    assert run(a, a, tmp_path, "--all") == 0
    assert "even" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "slower"),
    [
        (Spread(10, 9, 11, 20), Spread(12, 10.5, 13, 20), False),  # the ranges meet
        (Spread(10, 9.9, 10.1, 20), Spread(10.9, 10.8, 11, 20), False),  # within the band
        (Spread(10, 9.9, 10.1, 20), Spread(11.2, 11.1, 11.3, 20), True),
    ],
)
def test_what_noise_may_explain_is_no_regression(before: Spread, after: Spread, slower: bool, tmp_path: Path) -> None:
    a, b = (record([timed("w", 1.0, wall_us=spread)]) for spread in (before, after))
    assert run(a, b, tmp_path) == slower
    assert run(a, b, tmp_path, "--band", "0.05" if slower else "0.2") == slower


def test_equal_variants_stay_within_the_band() -> None:
    """20 samples of one distribution twice, 5% wide, with stragglers: not told apart in 400 tries."""
    chance = np.random.default_rng(0)

    def drawn() -> list[Timed]:
        samples = 10 * (1 + 0.05 * chance.standard_normal((400, 20)))
        samples[chance.random((400, 20)) < 0.05] *= 3
        return [timed(str(at), 1.0, wall_us=Spread.of(own)) for at, own in enumerate(samples.tolist())]

    assert not [pair for pair in pairs(record(drawn()), record(drawn()), BAND) if pair.regression]


def test_the_clock_nearest_to_the_device_that_timed_both() -> None:
    graph = Spread(5.0, 4.9, 5.1, 20)
    a = record([timed("w", 10.0, graph_us=graph), timed("v", 10.0, graph_us=graph)])
    b = record([timed("w", 90.0, graph_us=graph), timed("v", 10.0)])
    assert [(pair.clock, pair.verdict) for pair in pairs(a, b)] == [("graph", "the same"), ("wall", "the same")]


def test_what_is_wrong_now_is_a_regression(tmp_path: Path, capsys: Output) -> None:
    wrong = timed("w", 1.0, check=Check(False, 1.0, 0.1, "error 1 above 0.1"), wall_us=None)
    assert run(record([timed("w", 1.0)]), record([wrong]), tmp_path) == 1
    assert "BROKEN error 1 above 0.1" in capsys.readouterr().out
    right, spilled = (Compiled("linear", "k", "v", 90, problems) for problems in ([], ["8 bytes of local memory"]))
    assert run(record([right]), record([spilled]), tmp_path) == 1
    assert run(record([spilled]), record([spilled]), tmp_path) == 0


def test_rows_alike_are_told_apart_by_their_number() -> None:
    rows = [timed("w", 1.0), timed("w", 2.0), timed("w", 3.0, suite="conv")]
    assert len(identities(record(rows))) == 3
    found = [pair.verdict for pair in pairs(record(rows), record([*rows[:1], timed("w", 4.0), *rows[2:]]))]
    assert found == ["the same", "SLOWER", "the same"]


def test_mistakes_are_one_line(tmp_path: Path, capsys: Output) -> None:
    a = record([timed("w", 1.0)])
    for other, said in (
        (record([timed("w", 1.0)], "NVIDIA A100"), "A was measured on NVIDIA H200, B on NVIDIA A100: --across"),
        (record([timed("v", 1.0)]), "have no row in common"),
    ):
        assert run(a, other, tmp_path) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert run(a, record([timed("w", 1.0)], "NVIDIA A100"), tmp_path, "--across") == 0
    assert main(["compare", str(tmp_path / "a.json")]) == 2
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "none.json")]) == 2
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert main(["compare", "a", "b", "--band", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 4
    smoke = replace(a, smoke=True)
    assert run(smoke, smoke, tmp_path) == 0
    assert "whose times say nothing" in capsys.readouterr().out
