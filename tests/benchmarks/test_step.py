"""Suite ``step``: the engine's first steps are rung 1's, what is wrong is not timed, goals are said as they are."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from fastgan.benchmarks import accounting, chains, ladder, step, step_goals, step_overhead, step_rates
from fastgan.benchmarks.measure import Call
from fastgan.benchmarks.record import Ceilings, Check, Spread, Timed
from fastgan.benchmarks.rungs import rungs
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.step_workloads import Workload, workloads
from fastgan.errors import UserError

CPU = torch.device("cpu")
SMALL = {workload.name: workload for workload in workloads(small=True)}
BATCH = 4


def verdict(workload: Workload) -> Check:
    setting = Setting(smoke=True)
    _, eager, _ = ladder.prepare(rungs(CPU, None)[0], lambda rung: workload.baseline(rung, BATCH), setting.seed)
    return ladder.judge(step.first_steps(setting, workload, BATCH), eager, ladder.TOLERANCE["float32"])


def same(check: Check) -> bool:
    """fp32 by the same functions: far inside the bound."""
    return check.passed and check.error is not None and check.error < 5e-5


@pytest.mark.parametrize("name", SMALL)
def test_the_engine_begins_as_a_plain_loop_does(name: str) -> None:
    assert same(verdict(SMALL[name]))


def habits(name: str) -> tuple[dict[str, Timed], dict[str, list[Call]]]:
    workload, first = SMALL[name], rungs(CPU, None)[0]
    assert workload.published is not None
    _, eager, _ = ladder.prepare(first, lambda rung: workload.baseline(rung, BATCH), 0)
    rows = {variant: Timed(name, variant, "", "float32") for variant in step.PUBLISHED}
    calls: dict[str, list[Call]] = {}
    step.habits(Setting(), first, partial(workload.published, batch=BATCH), eager, rows, calls)
    return rows, calls


@pytest.mark.parametrize("name", ["mlp", "dcgan-32"])
def test_published_loops_begin_as_rung_1_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, calls = habits(name)
    assert calls.keys() == rows.keys() == step.PUBLISHED.keys()
    assert all(row.check is not None and same(row.check) for row in rows.values())
    monkeypatch.setattr(torch.nn.BCELoss, "forward", lambda self, p, target: 1.1 * F.binary_cross_entropy(p, target))
    assert not any(row.passed for row in habits(name)[0].values())


@pytest.mark.parametrize(("name", "waits"), [("mlp", 2), ("dcgan-32", 5)])
def test_items_are_what_the_habits_differ_in(name: str, waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: (seen.append(1), item(self))[1])
    counts, published = {}, SMALL[name].published
    assert published is not None
    for items in (True, False):  # torch's Adam has some of its own
        run = published(rungs(CPU, None)[0], batch=BATCH, items=items).run
        seen.clear()
        run()
        counts[items] = len(seen)
    assert counts[True] - counts[False] == waits


@pytest.mark.parametrize("name, key, value", [
    ("ring-8", "generator_optimizer.lr", 1e-3),
    ("mlp", "updates", "shared"),
    ("wgan-gp-mlp", "n_critic", 4),
    ("wgan-gp", "penalty.weight", 1.0),
    ("dcgan-32", "objective", "hinge"),
])  # fmt: skip
def test_another_training_is_found_out(name: str, key: str, value: object) -> None:
    from fastgan.presets import from_dict, nested

    changed = from_dict(nested({key: value}), SMALL[name].config())
    assert not same(verdict(replace(SMALL[name], config=lambda: changed)))


def test_a_penalty_elsewhere_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = step.between
    monkeypatch.setattr(step, "between", lambda points, penalty: kept(points * 0, penalty))
    assert not same(verdict(SMALL["wgan-gp-mlp"]))


def test_published_loops_are_raced_and_are_no_rungs() -> None:
    rows = {row.variant: row for row in step.measure(Setting(smoke=True), SMALL["dcgan-32"], BATCH)}
    assert all(rows[variant].wall_us for variant in step.PUBLISHED)
    assert ladder.best([rows[variant] for variant in step.PUBLISHED]) is None


def test_rows_of_a_cpu_say_so_and_wrong_ones_have_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.variant: row for row in step.measure(Setting(smoke=True), SMALL["ring-8"], BATCH)}
    assert [name for name, row in rows.items() if row.wall_us] == ["1 eager", "2 eager, tuned", "fastgan auto"]
    assert all(step_goals.on_cpu(row) for row in rows.values())
    assert all(row.passed for row in rows.values())
    assert rows["fastgan auto"].tflops is not None

    monkeypatch.setattr(Workload, "losses", lambda self, d, g: torch.stack([d * 1.1, g]))
    rows = {row.variant: row for row in step.measure(Setting(smoke=True), SMALL["ring-8"], BATCH)}
    assert not rows["fastgan auto"].passed
    assert rows["fastgan auto"].best is None
    assert rows["1 eager"].best is not None


def test_an_engine_that_raises_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: Setting, workload: Workload, batch: int) -> ladder.Trace:
        raise RuntimeError("planted")

    monkeypatch.setattr(step, "first_steps", broken)
    rows = {row.variant: row for row in step.measure(Setting(smoke=True), SMALL["ring-8"], BATCH)}
    check = rows["fastgan auto"].check
    assert check is not None and not check.passed
    assert "planted" in (check.why or "")


def test_operations_are_those_of_the_account_and_of_the_networks() -> None:
    full = {workload.name: workload for workload in workloads()}
    parts = [accounting.account(run, place) for run in chains.step("dcgan-64", 1) for place in run.places]
    assert step_rates.flops_of(full["dcgan-64"]) == accounting.total(parts).flops
    g = [100 * 128, 128 * 256, 256 * 512, 512 * 1024, 1024 * 784]
    d = [784 * 512, 512 * 256, 256]
    once = 3 * sum(g) - g[0] + 2 * (3 * sum(d)) - d[0]  # no gradient of z; D serves both, its data's of fakes alone
    counted = step_rates.flops_of(full["mlp"])
    assert counted in (2 * once, 2 * (once + d[0]))  # one batch of both, whose real half's gradient comes along


def test_the_floor_is_that_of_products_and_optimisers() -> None:
    timed = row("wgan-gp-mlp", "fastgan auto", 100.0)
    setting = Setting(ceilings=Ceilings(copy_gbs=1000.0, tflops={"bfloat16": 1e9}))
    step_rates.rate([timed], SMALL["wgan-gp-mlp"], BATCH, setting)
    trainer = SMALL["wgan-gp-mlp"].trainer(BATCH, CPU)
    g, d = (sum(w.numel() for w in net.parameters()) for net in (trainer.generator, trainer.discriminator))
    assert timed.roofline == pytest.approx(28 * (g + 5 * d) / 1e12 / 100e-6)
    setting.ceilings = Ceilings(copy_gbs=1e9, tflops={"bfloat16": 0.001})
    step_rates.rate([timed], SMALL["wgan-gp-mlp"], BATCH, setting)
    assert timed.tflops is not None
    assert timed.roofline == pytest.approx(timed.tflops / 0.001)


def test_the_plan_puts_published_batches_first() -> None:
    plan = step.tasks(Setting(options=Namespace()))
    first = {task.name for task in plan if task.priority == 0}
    assert {"mlp batch 64", "dcgan-64 batch 128", "wgan-gp batch 64"} <= first
    assert "dcgan-64 batch 1024" in {task.name for task in plan if task.priority > 0}
    assert step_goals.DIGITS in {task.name for task in plan}
    only = step.tasks(Setting(options=Namespace(workload=["mlp"], batch=[16, 32])))
    assert [task.name for task in only] == ["mlp batch 16", "mlp batch 32"]
    assert step_goals.DIGITS not in {task.name for task in step.tasks(Setting(device=torch.device("cuda")))}
    with pytest.raises(UserError, match="dcgan-64"):
        step.tasks(Setting(options=Namespace(workload=["dcgan-46"])))


def row(workload: str, variant: str, us: float, shape: str = "batch 64", note: str | None = None) -> Timed:
    return Timed(workload, variant, shape, "bfloat16", Check(True), wall_us=Spread(us, us, us, 20), note=note)


def test_goals_are_reached_missed_or_not_measured() -> None:
    rows = [row("mlp", "1 eager", 1600), row("mlp", "3 tuned, CUDA graph", 180), row("mlp", "fastgan auto", 110)]
    rows += [row("mlp", "fastgan triton", 50), row(step_goals.host("mlp"), "fastgan auto", 9)]
    rows += [row(step_goals.host("mlp"), "3 tuned, CUDA graph", 4), row("mlp" + step_goals.FIT, "fastgan auto", 20)]
    said = [line for line in step_goals.closing(rows) if line.startswith("goal, mlp")]
    assert [line.rpartition(": ")[2] for line in said] == ["missed, 1.64x", "missed, 14.55x", "reached, 9.00 us"]
    assert "3 tuned, CUDA graph" in said[0]
    rows[2] = row("mlp", "fastgan auto", 90)
    said = [line for line in step_goals.closing(rows) if line.startswith("goal, mlp")]
    assert [line.rpartition(": ")[2] for line in said[:2]] == ["reached, 2.00x", "reached, 17.78x"]
    assert all(line.endswith("not measured") for line in step_goals.closing([]) if line.startswith("goal"))


def test_a_cpu_reaches_no_goal_of_a_gpu() -> None:
    rows = [row("mlp", name, us, note="CPU") for name, us in (("1 eager", 900.0), ("fastgan auto", 1.0))]
    said = [line for line in step_goals.closing(rows) if line.startswith("goal, mlp")]
    assert len(said) == 3
    assert all(line.endswith("not measured") for line in said)


def test_the_trainer_beside_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(step_overhead.measure(Setting(smoke=True)))
    assert [row.variant for row in rows] == [step_goals.LOOP, step_goals.TRAINER]
    assert all(row.wall_us and step_goals.on_cpu(row) for row in rows)
    rows[0].wall_us, rows[1].wall_us = Spread(100, 100, 100, 3), Spread(104, 104, 104, 3)
    assert step_goals.overhead(rows).endswith("missed, +4.0%")
    rows[1].wall_us = Spread(102, 102, 102, 3)
    assert step_goals.overhead(rows).endswith("reached, +2.0%")

    monkeypatch.setattr(step_overhead, "Loop", lambda images, seed: kept(images, seed + 1))
    wrong = list(step_overhead.measure(Setting(smoke=True)))
    assert not wrong[1].passed
    assert wrong[0].wall_us is None


kept = step_overhead.Loop


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mlp", "dcgan-32", "wgan-gp"])
def test_captured_engines_are_right_and_timed(name: str) -> None:
    setting = Setting(device=torch.device("cuda", torch.cuda.current_device()), smoke=True)
    setting.options = Namespace(rung=[3])
    rows = list(step.measure(setting, SMALL[name], 16))
    whole = {row.variant: row for row in rows if row.workload == name}
    for variant in ("3 tuned, CUDA graph", "fastgan auto", "fastgan triton"):
        assert whole[variant].passed, whole[variant].check
        assert whole[variant].graph_us is not None
        assert whole[variant].device_us is None
        assert whole[variant].launches
    assert {row.variant for row in rows if row.workload == step_goals.host(name)} >= {"fastgan auto"}
    assert rows[-1].workload == name + step_goals.FIT
    assert rows[-1].wall_us is not None
