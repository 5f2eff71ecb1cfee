"""The report: pages say what the records say; synthetic records, in a folder of their own, show all it can draw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastgan.benchmarks import main
from fastgan.benchmarks.environment import environment
from fastgan.benchmarks.findings import RESULTS, collect, steps
from fastgan.benchmarks.record import Ceilings, Check, Record, Row, Spread, Timed, write
from fastgan.benchmarks.report_plots import by_kind, kind_of
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.step_workloads import workloads

Output = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[2]
CHECK = Check(True, 1e-3, 5e-2)
GPU = "Synthetic H200, not a card"
DATE = "2026-01-02T03:04:05+00:00"
VARIANTS = {
    "1 eager": 9.0,
    "2 eager, tuned": 5.0,
    "3 tuned, CUDA graph": 2.0,
    "fastgan auto": 1.0,
    "fastgan triton": 1.1,
}
PARTS = {"conv_fwd_kernel": 0.3, "conv_bwd_weight_kernel": 0.25, "batch_norm_act_fwd_kernel": 0.1, "loss_kernel": 0.02,
    "linear_fwd_kernel": 0.1, "optimizer_step_kernel": 0.08, "Memcpy DtoD": 0.05, "what_is_this": 0.03}  # fmt: skip


def around(us: float, chance: random.Random) -> Spread:
    median = us * chance.uniform(0.97, 1.03)
    return Spread(median, 0.98 * median, 1.03 * median, 20)


def step_rows(chance: random.Random) -> list[Row]:
    rows: list[Row] = []
    for at, workload in enumerate(workloads()):
        for batch in workload.batches:
            us = 60.0 * (1 + at) * (1 + batch / 96)
            for variant, times in VARIANTS.items():
                parts = {name: us * times * share * chance.uniform(0.5, 1.5) for name, share in PARTS.items()}
                times = 1 + (times - 1) * 64 / (64 + batch)  # gains shrink as batches grow
                wall, replay = around(us * times, chance), around(0.95 * us * times, chance)
                row = Timed(
                    workload.name, variant, f"batch {batch}", "bfloat16", Check(True, 1e-3, 5e-2), "1 eager", wall
                )
                row.graph_us, row.kernel_us, row.launches = replay, 0.9 * us * times, 50.0 * times
                row.parts, row.peak_bytes, row.tflops, row.roofline = parts, 10**9, 100 / times, 0.5 / times
                row.suite, row.task = "step", f"{workload.name} batch {batch}"
                rows.append(row)
    return rows


def product_rows(chance: random.Random) -> list[Row]:
    rows: list[Row] = []
    for variant, us in (("1 thread", 9000.0), ("4 threads", 2500.0)):
        row = Timed("decode jpeg", variant, "64 of 256x256 -> 64", "uint8", CHECK, wall_us=around(us, chance))
        row.suite = "data"
        rows.append(row)
    for size in (64, 256, 1024, 4096):
        flops, moved = 2.0 * size**3, 6.0 * size**2
        floor = max(flops / 700e6, moved / 4e6)
        for variant, share in (("eager", 0.5), ("compiled", 0.6), ("fastgan auto", 0.8), ("fastgan triton", 0.75)):
            spread = around(2 + floor / share, chance)
            row = Timed(f"square {size} both", variant, f"{size}x{size}", "bfloat16", CHECK, "eager")
            row.wall_us = row.device_us = row.graph_us = spread
            row.tflops, row.gbs, row.suite = flops / spread.median / 1e6, moved / spread.median / 1e3, "linear"
            rows.append(row)
    return rows


def record(
    rows: Sequence[Row], suite: str = "all", date: str = "2026-01-02T03:04:05+00:00", device: str = GPU
) -> Record:
    block = environment(Setting()) | {"device": device, "date": date, "driver": "0.0", "cuda": "0.0", "dirty": False}
    ceilings = Ceilings(4000.0, {"bfloat16": 700.0, "tf32": 350.0, "float32": 50.0}, {"eager": 5.0, "graph_node": 1.1})
    return Record(suite, [suite], False, None, block, ceilings, list(rows))


def synthetic(folder: Path) -> None:
    chance = random.Random(0)
    rows = [*step_rows(chance), *product_rows(chance)]
    rows.append(
        Timed("square 64 both", "cublaslt", "64x64", "bfloat16", Check(False, why="planted"), "eager", suite="linear")
    )
    alone = Timed("mlp: host", "fastgan auto", "batch 64", "bfloat16", CHECK, wall_us=Spread(7.5, 7.0, 8.0, 20))
    write(record([*rows, alone]), folder / "synthetic.json")
    rung = Timed("mlp", "4 max-autotune", "batch 64", "bfloat16", Check(True), wall_us=Spread(1.0, 1.0, 1.0, 20))
    rung.suite = "ladder"
    write(record([rung], "ladder"), folder / "synthetic-ladder.json")


def house(tmp_path: Path) -> list[str]:
    """Pages, and the options that lead there."""
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "docs" / "page.md").write_text("prose\n<!-- results: begin -->\n<!-- results: end -->\nmore prose\n")
    (tmp_path / "docs" / "quality.md").write_text("<!-- quality: begin -->\n<!-- quality: end -->\n")
    (tmp_path / "README.md").write_text("<!-- speed: begin -->\n<!-- speed: end -->\n")
    places = {"page": "docs/page.md", "readme": "README.md", "pictures": "docs/pictures", "results": "results"}
    places["quality"] = "docs/quality.md"
    return [word for name, place in places.items() for word in (f"--{name}", str(tmp_path / place))]


def test_the_pages_say_what_the_records_say(capsys: Output) -> None:
    assert main(["report", "--check"]) == 0, "`fastgan bench report` writes docs/benchmarks.md and README.md anew"


def test_without_a_record_nothing_is_measured() -> None:
    if any(RESULTS.glob("*.json")):
        pytest.skip("there are records")
    for name in ("README.md", "docs/benchmarks.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        table = [line for line in text.splitlines() if line.startswith("| `mlp` | 64")]
        assert table and all(set(line.split(" | ")[2:-1]) <= {"not measured"} for line in table)


def test_synthetic_records_become_tables_and_pictures(tmp_path: Path, capsys: Output) -> None:
    options = house(tmp_path)
    synthetic(tmp_path / "results")
    assert main(["report", *options, "--check"]) == 1
    assert "not what the records say" in capsys.readouterr().out
    assert main(["report", *options]) == 0
    page = (tmp_path / "docs" / "page.md").read_text(encoding="utf-8")
    assert page.startswith("prose\n") and page.endswith("more prose\n")
    assert f"### {GPU}" in page
    line = next(line for line in page.splitlines() if line.startswith("| `mlp` | 64 |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[5] == "1" and cells[6] == "not measured"  # rung 4 from the ladder's record, rung 5 from nowhere
    assert float(cells[-2].removesuffix("x")) < 0.1  # the best rung is the ladder's
    assert "wrong" in next(line for line in page.splitlines() if line.startswith("| square 64 both |"))
    assert " | 7.5 | " in next(line for line in page.splitlines() if line.startswith("| `mlp` | fastgan auto | 64 |"))
    assert next(line for line in page.splitlines() if line.startswith("| decode jpeg |")).endswith(" | wall |")
    for picture in ("speedup", "roofline", "parts"):
        path = tmp_path / "docs" / "pictures" / f"benchmarks-{picture}-synthetic-h200-not-a-card.png"
        assert f"(pictures/{path.name})" in page
        assert path.stat().st_size > 10_000
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert GPU in readme and readme.count("not measured") == 0
    assert "not measured" in (tmp_path / "docs" / "quality.md").read_text(encoding="utf-8")
    assert main(["report", *options, "--check"]) == 0


def test_the_newest_measured_row_counts(tmp_path: Path) -> None:
    def row(us: float | None, suite: str = "step", variant: str = "fastgan auto") -> Timed:
        spread = None if us is None else Spread(us, us, us, 20)
        check = None if us is None else Check(True)
        return Timed("mlp", variant, "batch 64", "bfloat16", check, wall_us=spread, suite=suite)

    rung = "3 tuned, CUDA graph"
    for date, rows in {
        "2026-01-01": [row(1.0), row(7.0, variant=rung)],
        "2026-01-03": [row(None), row(2.0, "ladder", rung)],
        "2026-01-02": [row(3.0)],
    }.items():
        write(record(rows, date=f"{date}T00:00:00+00:00"), tmp_path / f"{date}.json")
    smoke = record([row(9.0)], date="2026-01-04T00:00:00+00:00")
    smoke.smoke = True
    write(smoke, tmp_path / "smoke.json")
    write(record([row(5.0)], device="CPU"), tmp_path / "cpu.json")
    gpu, cpu = collect(tmp_path)
    assert (gpu.device, cpu.device) == (GPU, "CPU")
    step = next(step for step in steps(gpu) if (step.workload, step.batch) == ("mlp", 64))
    seen = {name: found.wall_us.median for name in step.rows if (found := step.row(name)) and found.wall_us}
    assert seen == {"fastgan auto": 3.0, rung: 7.0}  # what raced against ours, not what ran alone


def test_mistakes_are_one_line(tmp_path: Path, capsys: Output) -> None:
    options = house(tmp_path)
    assert main(["report", *options, "--page", str(tmp_path / "none.md")]) == 2
    (tmp_path / "results" / "broken.json").write_text("{}")
    assert main(["report", *options]) == 2
    (tmp_path / "results" / "broken.json").unlink()
    (tmp_path / "README.md").write_text("no marks")
    assert main(["report", *options]) == 2
    assert main(["report", "--colour"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    for line, said in zip(
        errors, ("none.md here", "has no format", "has no lines <!-- speed", "--colour"), strict=True
    ):
        assert said in line


def test_kernels_are_sorted_by_what_they_do() -> None:
    names = {
        "conv_bwd_input_kernel": "convolutions",
        "void cudnn::bn_fw_tr_1C11_kernel_NHWC<float>": "norms",
        "sm90_xmma_fprop_implicit_gemm_bf16": "convolutions",
        "nvjet_hsh_128x256": "linear layers",
        "void at::native::multi_tensor_apply_kernel<FusedAdam>": "optimisers",
        "Memcpy HtoD (Pageable -> Device)": "copies",
        "void at::native::vectorized_elementwise_kernel<4>": "elementwise",
        "unheard of": "other",
    }
    assert {name: kind_of(name) for name in names} == names
    row = Timed("w", "v", "s", "d", parts={"conv_fwd_kernel": 1.0, "conv_bwd_weight_kernel": 2.0, "x": 0.5})
    assert by_kind(row) == {"convolutions": 3.0, "other": 0.5}
