"""The audit sees each planted fault, on the architecture where it is one, and lets the rest pass."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest

from fastgan.benchmarks import runner
from fastgan.benchmarks.environment import environment
from fastgan.benchmarks.record import Compiled, Record, validate
from fastgan.benchmarks.setting import Setting

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, not a GPU")

FAULTY = str(Path(__file__).with_name("faulty_kernels.py"))
EXPECTED = {  # what is wrong with a variant, and on which of the two architectures
    "good bf16": {},
    "good tf32": {},
    "good ieee": {},
    "too many registers": {90: "its file promises 16", 86: "its file promises 16"},
    "spilling": {90: "bytes of spill", 86: "bytes of spill"},
    "too much shared memory": {86: "a block may have 101376"},
    "no wgmma": {90: "no wgmma in a tile of 64 rows (bf16)"},
    "broken": {90: "does not compile: CompileTimeAssertionFailure: a planted", 86: "does not compile"},
}


def audit(jobs: int = 1, smoke: bool = False, **options: object) -> Record:
    from fastgan.benchmarks.audit import SUITE

    setting = Setting(smoke=smoke, options=Namespace(**options))
    record = Record("audit", [], smoke, None, environment(setting))
    assert runner.run(SUITE, setting, record, jobs) == record.passed
    return record


@pytest.fixture(scope="module")
def rows() -> list[Compiled]:
    record = audit(kernel=[FAULTY], arch=[90, 86])
    assert record.left_out == []
    assert not record.passed
    if importlib.util.find_spec("jsonschema"):
        validate(record.to_json())
    return [row for row in record.rows if isinstance(row, Compiled)]


@pytest.mark.parametrize("variant", EXPECTED)
@pytest.mark.parametrize("arch", [90, 86])
def test_each_fault_is_seen_where_it_is_one(rows: list[Compiled], variant: str, arch: int) -> None:
    (row,) = [row for row in rows if (row.variant, row.arch) == (variant, arch)]
    if arch in EXPECTED[variant]:
        assert len(row.problems) == 1
        assert EXPECTED[variant][arch] in row.problems[0]
    else:
        assert row.problems == []


def test_a_row_says_what_the_compiler_made(rows: list[Compiled]) -> None:
    hopper = {row.variant: row for row in rows if row.arch == 90}
    ampere = {row.variant: row for row in rows if row.arch == 86}
    assert hopper["good bf16"].instructions["wgmma"] > 0
    assert hopper["good bf16"].instructions["mma"] == 0
    assert ampere["good bf16"].instructions["wgmma"] == 0
    assert ampere["good bf16"].instructions["mma"] > 0
    assert hopper["good tf32"].instructions["wgmma"] > 0
    assert hopper["good ieee"].instructions["wgmma"] == hopper["good ieee"].instructions["mma"] == 0
    assert hopper["good bf16"].instructions["async_copy"] > 0
    assert hopper["spilling"].instructions["local"] > 0
    assert hopper["good bf16"].instructions["local"] == 0
    assert (hopper["good bf16"].shared_limit_bytes, ampere["good bf16"].shared_limit_bytes) == (232448, 101376)
    assert (ampere["too much shared memory"].blocks_per_sm, ampere["too much shared memory"].limiter) == (
        0,
        "shared memory",
    )
    assert hopper["broken"].registers is None


def test_divisibility_is_part_of_what_is_compiled(rows: list[Compiled]) -> None:
    """Without the attributes that a launcher sets, another kernel would be audited: one without wide copies."""
    import dataclasses

    from fastgan.benchmarks.audit import variants_of
    from fastgan.benchmarks.compiled import compile_variant, instructions

    variant = variants_of(FAULTY, 90)[0]
    bare = instructions(compile_variant(dataclasses.replace(variant, divisible=frozenset()), 90))
    assert bare["async_copy"] == 0
    with pytest.raises(ValueError, match="not stated"):
        compile_variant(dataclasses.replace(variant, signature={"a": "*bf16"}), 90)


@pytest.mark.full
def test_processes_give_the_rows_of_one_process(rows: list[Compiled]) -> None:
    def key(row: object) -> object:
        return {name: value for name, value in vars(row).items() if name != "seconds"}

    apart = audit(jobs=2, kernel=[FAULTY], arch=[90])
    assert [key(row) for row in apart.rows] == [key(row) for row in rows if row.arch == 90]


@pytest.mark.parametrize(
    ("arch", "warps", "registers", "shared", "expected"),
    [
        (90, 8, 128, 98304, (2, "registers")),
        (90, 4, 32, 0, (16, "registers")),
        (90, 4, 16, 0, (16, "warps")),
        (80, 1, 16, 0, (32, "blocks")),
        (86, 1, 16, 0, (16, "blocks")),
        (86, 4, 64, 49152, (2, "shared memory")),
        (120, 4, 64, 99 * 1024, (1, "shared memory")),
        (120, 4, 64, 100 * 1024, (0, "shared memory")),
        (80, 8, 255, 0, (1, "registers")),
    ],
)
def test_occupancy_by_hand(arch: int, warps: int, registers: int, shared: int, expected: tuple[int, str]) -> None:
    from fastgan.benchmarks.cards import occupancy

    assert occupancy(arch, warps=warps, registers=registers, shared=shared) == expected


def test_tensor_memory_limits_as_well() -> None:
    from fastgan.benchmarks.cards import occupancy

    assert occupancy(100, warps=4, registers=32, shared=0, tensor_columns=256) == (2, "tensor memory")


def test_the_seeded_slice_is_small_and_the_same_each_time() -> None:
    from fastgan.benchmarks.audit import tasks

    def names(seed: int) -> list[str]:
        return [task.name for task in tasks(Setting(smoke=True, seed=seed, options=Namespace(kernel=[FAULTY])))]

    assert names(1) == names(1)
    assert names(1) != names(2)
    assert len(names(1)) == 1  # a variant of one kernel, on one architecture
    several = Setting(smoke=True, options=Namespace(kernel=["bce", "latent", "tick"]))
    assert {task.name.rpartition(" ")[2] for task in tasks(several)} == {"sm_90", "sm_86"}, "in turns"


def test_a_slice_of_our_own_kernels_passes() -> None:
    record = audit(jobs=2, smoke=True)
    assert record.rows
    assert [(row.variant, row.problems) for row in record.rows if isinstance(row, Compiled) and row.problems] == []


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
def test_every_variant_of_our_own_kernels_passes(arch: int) -> None:
    record = audit(jobs=2, arch=[arch])
    assert record.left_out == []
    assert [(row.variant, row.problems) for row in record.rows if isinstance(row, Compiled) and row.problems] == []
