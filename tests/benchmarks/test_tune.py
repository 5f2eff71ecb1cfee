"""The tuner: what it plans, what it keeps, and that it can be stopped and gone on with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
from fastgan.benchmarks import main, tune
from fastgan.benchmarks.products import Product
from fastgan.benchmarks.race import Workload
from fastgan.benchmarks.record import Check, Spread, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.tune import LIBRARY, MOST, SUITE
from fastgan.kernels import tables
from fastgan.kernels.problem import Config
from fastgan.kernels.tables import Entry, merged, read, write

Output = pytest.CaptureFixture[str]
Run = Callable[..., dict[str, Any]]
OLD = Entry(
    "linear_fwd", "16-bit", False, True, 64, 64, 64, Config(32, 32, 64, 4, 128), 5.0, 6.0, "torch 2.0, triton 3.0"
)


@pytest.fixture
def ran(tmp_path: Path) -> Run:
    """Run the suite on the CPU; the record's body."""

    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        path = tmp_path / "record.json"
        assert main(["tune", "--device", "cpu", "--json", str(path), *arguments]) == code
        return json.loads(path.read_text(encoding="utf-8"))

    return run


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_without_a_gpu_one_line_says_what_can_be_done(no_interpreter: None, capsys: Output) -> None:
    assert main(["tune", "--device", "cpu"]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: tuning needs a CUDA device: `tune --plan`")
    assert output.err.count("\n") == 1 and output.out == ""


@pytest.mark.parametrize("arch, refused", [("90", "accumulators|registers"), ("86", "bytes of shared memory")])
def test_a_plan_lists_the_likeliest_first_and_refusals_with_their_reason(
    ran: Run, arch: str, refused: str, capsys: Output
) -> None:
    body = ran("--plan", "--workload", "mlp", "--batch", "1024", "--dtype", "bfloat16", "--arch", arch)
    assert "nothing was run" in capsys.readouterr().out
    products: dict[tuple[str, str], list[str]] = {}
    for row in body["rows"]:
        assert row["check"] is row["wall_us"] is row["graph_us"] is None
        products.setdefault((row["workload"], row["shape"]), []).append(row["note"])
    assert len(products) == 3 * 8  # directions and layers
    for notes in products.values():
        expected = [
            float(found[1]) for note in notes if (found := re.match(r"([\d.]+) us expected, \d+ programs", note))
        ]
        assert 3 <= len(expected) <= MOST and expected == sorted(expected)
        assert all(note.startswith("refused: ") for note in notes[len(expected) :])
    assert any(re.search(refused, note) for notes in products.values() for note in notes)


def test_everything_is_planned_once_and_what_matters_most_comes_first() -> None:
    setting = Setting(options=options("--plan"))
    names = [task.name for task in SUITE.tasks(setting)]
    assert len(names) == len(set(names)) > 1000
    assert names[0] == "linear_fwd 64x100x128 bfloat16"
    batches = [int(re.split(r"[ x]", name)[1]) for name in names]
    assert {16, 64, 65536} <= set(batches)
    assert {name.split()[-1] for name in names} == {"bfloat16", "tf32", "float32"}


def test_the_smoke_form_without_an_interpreter_only_plans(no_interpreter: None, ran: Run, capsys: Output) -> None:
    body = ran("--smoke")
    assert body["rows"] and not any(row["wall_us"] for row in body["rows"])
    assert "nothing was run" in capsys.readouterr().out


@pytest.mark.interpret
def test_the_smoke_form_goes_the_whole_way_and_goes_on_where_it_was(tmp_path: Path, ran: Run) -> None:
    path = tmp_path / "table.json"
    write(path, "interpreter", {}, [OLD])
    arguments = ("--smoke", "--batch", "20", "--op", "linear_fwd", "linear_bwd_weight", "--out", str(path))
    body = ran(*arguments)
    assert all(row["check"]["passed"] and row["wall_us"] for row in body["rows"])
    entries = read(path, "interpreter")
    assert len(entries) == 5 and OLD in entries
    assert {entry.op for entry in entries} == {"linear_fwd", "linear_bwd_weight"}
    assert all(entry.us > 0 and entry.library_us for entry in entries)
    assert ran(*arguments)["rows"] == []  # nothing left to do
    written = path.read_bytes()
    path.write_bytes(written.replace(b", triton 3", b", triton 2"))
    assert len(ran(*arguments)["rows"]) == len(body["rows"])  # other versions: measured again
    assert len(ran(*arguments, "--again")["rows"]) == len(body["rows"])


def options(*arguments: str) -> Any:
    from fastgan.benchmarks.command import common

    parser = common()
    tune.arguments(parser)
    return parser.parse_args(["tune", *arguments])


def pretend(monkeypatch: pytest.MonkeyPatch, *times: float | None) -> list[str]:
    """Let the library take 10 us and the tiles these times, None for a wrong result; the tiles' names, as they come."""
    names: list[str] = []

    def timed(workload: Workload, setting: Setting) -> dict[str, Timed]:
        names[:] = [name for name in workload.contenders if name != LIBRARY]
        given = {LIBRARY: 10.0, **dict(zip(names, (*times, *[99.0] * MOST), strict=False))}
        return {
            name: Timed(
                *(workload.name, name, workload.shape, workload.dtype),
                Check(time is not None),
                graph_us=None if time is None else Spread(time, time, time, 3),
            )
            for name, time in given.items()
        }

    monkeypatch.setattr(tune, "timed", timed)
    return names


PRODUCT = Product("linear_bwd_input", 64, 512, 256, "bfloat16")


def test_the_fastest_right_tile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "table.json"
    write(path, "interpreter", {}, [OLD])
    names = pretend(monkeypatch, 7.0, None, 5.0, 6.0)
    setting = Setting(options=options("--out", str(path)))
    rows = list(tune.tune(setting, PRODUCT, path))
    assert [row.variant for row in rows] == [LIBRARY, names[2], names[1]]
    (entry,) = (entry for entry in read(path, "interpreter") if entry != OLD)
    assert (entry.op, entry.rows, entry.cols, entry.depth, entry.masked) == ("linear_bwd_input", 64, 512, 256, True)
    assert (entry.us, entry.library_us) == (5.0, 10.0) and tune.label(entry.config) == names[2]
    assert merged([OLD], [entry]) == read(path, "interpreter")
    assert len(names) == MOST


def test_nothing_is_kept_where_every_result_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.json"
    pretend(monkeypatch, *[None] * MOST)
    rows = list(tune.tune(Setting(options=options()), PRODUCT, path))
    assert len(rows) == 1 + MOST and not rows[1].passed
    assert not path.exists()


@pytest.mark.parametrize("text, said", [("{}", "format"), ('{"format": "fastgan-tuned/1", "gpu": "x"}', "for 'x'")])
def test_a_table_of_another_kind_is_not_written_over(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    path = tmp_path / "table.json"
    path.write_text(text, encoding="utf-8")
    assert main(["tune", "--device", "cpu", "--smoke", "--out", str(path)]) == 2
    output = capsys.readouterr().err
    assert said in output and str(path) in output and output.count("\n") == 1
    assert path.read_text(encoding="utf-8") == text


def test_an_installed_package_is_not_written_to(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["tune", "--device", "cpu", "--smoke", "--out", "/x/site-packages/fastgan/t.json"]) == 2
    assert "installed package" in capsys.readouterr().err


def test_the_table_lies_where_the_choice_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "name_of", lambda setting: "a-card")
    assert tune.table_of(Setting(options=options())) == tables.local_path("a-card")
    assert tune.table_of(Setting(smoke=True, options=options("--smoke"))) is None


def test_a_tile_that_the_compiler_spills_is_left_out(no_interpreter: None) -> None:
    import torch

    from fastgan.benchmarks.products import DIRECTIONS
    from fastgan.kernels.problem import Target

    product = Product("linear_bwd_weight", 4096, 512, 512, "bfloat16")
    shapes, _, launched = DIRECTIONS[product.op](product, Target(90, "tf32"))
    operands = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
    for config, expected in ((Config(256, 128, 64, 8, 255), True), (Config(64, 64, 64, 4, 255), False)):
        assert tune.spills(launched(*operands, config=config)[0], 90) is expected
