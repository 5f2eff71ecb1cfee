"""Tables: modes of known mixtures are found, and encoding is undone by decoding."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgan.data.gaussians import Mode, densities, fit
from fastgan.data.table import Column, Table
from fastgan.errors import UserError

AGE = Column("age", "integer", modes=((20.0, 3.0, 0.5), (60.0, 8.0, 0.5)), missing=True)
PAY = Column("pay", "float", modes=((0.5, 2.0, 1.0),))
JOB = Column("job", "category", categories=("cook", "judge", ""))
TABLE = Table((AGE, PAY, JOB))


def drawn(modes: tuple[Mode, ...], n: int) -> np.ndarray:
    rng = np.random.default_rng(8)
    means, sigmas, weights = np.array(modes).T
    chosen = rng.choice(len(modes), n, p=weights)
    return means[chosen] + sigmas[chosen] * rng.standard_normal(n)


@pytest.mark.parametrize(
    "modes",
    [
        ((3.0, 2.0, 1.0),),
        ((-5.0, 0.5, 0.3), (5.0, 1.0, 0.7)),
        ((-1e6, 1e4, 0.05), (0.0, 1e5, 0.9), (3e6, 2e5, 0.05)),
        tuple((4.0 * at, 0.3, 0.1) for at in range(10)),
        ((0.0, 0.0, 0.7), (10.0, 2.0, 0.3)),
    ],
)
def test_known_mixtures_are_found(modes: tuple[Mode, ...]) -> None:
    """Each true mode is there, with its weight; and the fit explains the column as well as the truth does."""
    values = drawn(modes, 5000)
    found = fit(values)
    spread = values.std()
    assert len(modes) <= len(found) <= len(modes) + 2
    for mean, sigma, weight in modes:
        near = [mode for mode in found if abs(mode[0] - mean) < max(3 * sigma, 0.05 * spread)]
        assert abs(sum(mode[2] for mode in near) - weight) < 0.03
    if min(sigma for _, sigma, _ in modes) > 0:
        explained, truth = (np.logaddexp.reduce(densities(values, m), axis=1).mean() for m in (found, modes))
        assert explained > truth - 0.01


def test_fits_are_the_same_every_time_and_in_any_order() -> None:
    values = drawn(((0.0, 1.0, 0.5), (6.0, 2.0, 0.5)), 1000)
    assert fit(values) == fit(values.copy()) == fit(values[::-1].copy())


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1.0, 2.0], [1e38, -3e38, 5.0], [1e-40, 2e-40], [5e300, 5e300]])
def test_odd_columns_have_modes(values: list[float]) -> None:
    modes = fit(np.array(values))
    assert 1 <= len(modes) <= 10 and math.isclose(sum(weight for *_, weight in modes), 1)
    assert all(np.isfinite(mode).all() and mode[1] > 0 for mode in modes)


def test_what_a_point_looks_like() -> None:
    """alpha = (c - mu) / (4 sigma), then the one-hot of the mode; missing: 0 and a place of its own."""
    points = TABLE.encode([["23", "8.5", "judge"], ["", "0.5", "?"]])
    assert points.dtype == torch.float32
    assert points.tolist() == [[0.25, 1, 0, 0, 1.0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 1, 0, 0, 1]]
    parts = [(span.start, span.stop, span.what) for span in TABLE.spans]
    assert parts == [(0, 1, "alpha"), (1, 4, "onehot"), (4, 5, "alpha"), (5, 6, "onehot"), (6, 9, "onehot")]


def test_a_number_between_modes_goes_to_each_as_likely_as_it_is() -> None:
    even = Table((Column("x", "float", modes=((-1.0, 1.0, 0.5), (1.0, 1.0, 0.5))),))
    points = even.encode([["0"]] * 4000, seed=3)
    assert abs(points[:, 1].mean() - 0.5) < 0.03 and torch.equal(points[:, 1] + points[:, 2], torch.ones(4000))
    assert torch.equal(points, even.encode([["0"]] * 4000, seed=3))
    uneven = Table((Column("x", "float", modes=((-1.0, 1.0, 0.2), (1.0, 1.0, 0.8))),))
    assert abs(uneven.encode([["0"]] * 4000)[:, 1].mean() - 0.2) < 0.03


CELLS = st.tuples(
    st.one_of(st.just(""), st.integers(-(2**22) + 100, 2**22 - 100).map(str)),
    st.floats(-1e6, 1e6, width=32).map(repr),
    st.sampled_from(JOB.categories),
)


@given(st.lists(CELLS, min_size=1, max_size=20))
def test_decoding_undoes_encoding(rows: list[tuple[str, ...]]) -> None:
    back = TABLE.decode(TABLE.encode(rows))
    for (age, pay, job), (age_back, pay_back, job_back) in zip(rows, back, strict=True):
        assert (age, job) == (age_back, job_back)
        assert abs(float(pay) - float(pay_back)) <= 2**-23 * (abs(float(pay)) + 1)


def test_generated_points_decode_to_what_is_likeliest() -> None:
    noise = torch.randn(100, TABLE.width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for age, pay, job in TABLE.decode(noise):
        assert age == "" or int(age) < 200
        assert math.isfinite(float(pay)) and job in JOB.categories


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (["1", "2"], "2 cells and the table 3"),
        (["old", "1", "cook"], "'age': 'old' is no number"),
        (["1", "inf", "cook"], "'pay': 'inf' is no number"),
        (["1", "", "cook"], "'pay': '' is no number"),
        (["1", "1", "pilot"], "'job': 'pilot' is none of its 3"),
    ],
)
def test_rows_of_another_table_are_refused(row: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        TABLE.encode([row])
    with pytest.raises(UserError, match=r"\(n, 9\)"):
        TABLE.decode(torch.zeros(3, 8))


def test_json_there_and_back() -> None:
    assert Table.from_json(TABLE.to_json()) == TABLE
    body = json.loads(TABLE.to_json())
    for spoil in (
        lambda b: b.pop("format"),
        lambda b: b.update(format="fastgan-table/2"),
        lambda b: b.update(columns=[]),
        lambda b: b["columns"][0].update(kind="date"),
        lambda b: b["columns"][0].update(modes=[]),
        lambda b: b["columns"][0].update(modes=[[0, 0, 1]]),
        lambda b: b["columns"][0].update(modes=[[0, "x", 1]]),
        lambda b: b["columns"][0].update(name=3),
        lambda b: b["columns"][2].update(categories=["a", "a"]),
        lambda b: b["columns"][2].update(categories="abc", modes=[[0, 1, 1]]),
    ):
        broken = json.loads(json.dumps(body))
        spoil(broken)
        with pytest.raises(UserError, match="no table in JSON"):
            Table.from_json(json.dumps(broken))
    for text in ("", "[]", "{", "[" * 100_000):
        with pytest.raises(UserError, match="no table in JSON"):
            Table.from_json(text)
