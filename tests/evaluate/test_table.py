"""Rows of a table beside the data's: known distances, the data themselves, a dropped category, shuffled columns."""

import numpy as np
import pytest
import torch
from scipy import stats

from fastgan import data
from fastgan.data import Dataset
from fastgan.data.table import Column, Table
from fastgan.errors import UserError
from fastgan.evaluate import Subject, metric
from fastgan.evaluate.table import distances, kolmogorov_smirnov, measure, suits, total_variation, values


def subject(rows, people):
    """Rows of text as samples of a generator."""
    return Subject.of_samples(people.table.encode(rows), people)


def cells(people):
    """The data's rows as text."""
    return people.table.decode(people.images)


@pytest.fixture(scope="module")
def people():
    return data.load("people")


def test_distances_of_known_laws():
    assert total_variation(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2]), 3) == pytest.approx(0.5)
    assert total_variation(np.array([0]), np.array([1]), 2) == 1
    random = np.random.default_rng(0)
    mine, theirs = random.normal(size=300), random.normal(0.3, 2, size=500).round(1)
    assert kolmogorov_smirnov(mine, theirs) == pytest.approx(stats.ks_2samp(mine, theirs).statistic, abs=1e-12)
    assert kolmogorov_smirnov(mine, mine[::-1]) == 0
    half = np.where(np.arange(300) % 2, mine, np.inf)  # every second one is missing
    assert kolmogorov_smirnov(half, mine) >= 0.5 - 1e-9
    assert kolmogorov_smirnov(np.full(3, np.inf), np.full(5, np.inf)) == 0


def test_the_data_beside_themselves(people):
    found = measure(subject(cells(people), people), len(people)).values
    assert found["columns, mean distance"] == found["columns, largest"] == 0
    assert found["pairs, mean distance"] == found["pairs, largest"] == 0
    assert found["copies %"] == 100
    assert 0 < found["columns, mean distance of fresh rows"] < 0.02
    assert 0 < found["pairs, mean distance of fresh rows"] < 0.1


def test_fresh_rows_are_as_near_as_fresh_rows_are(people):
    """The test split is of the same law: no distance beyond what so many rows give by chance, and no copies."""
    other = data.load("people", split="test")
    rows = cells(other)[:2000]
    found = measure(subject(rows, people), len(rows)).values
    assert found["columns, mean distance"] < 2 * found["columns, mean distance of fresh rows"]
    assert found["pairs, mean distance"] < 1.5 * found["pairs, mean distance of fresh rows"]
    assert found["copies %"] < 5


def test_a_dropped_category_and_its_share(people):
    rows = cells(people)
    at = [column.name for column in people.table.columns].index("job")
    share = sum(row[at] == "judge" for row in rows) / len(rows)
    kept = [row for row in rows if row[at] != "judge"]
    result = measure(subject(kept, people), len(kept))
    assert result.values["columns, largest"] == pytest.approx(share, abs=1e-9) and share > 0.01
    found = distances(people.table, values(people.table, kept), values(people.table, rows))
    assert found.columns["job"] == pytest.approx(share, abs=1e-9)
    assert "job" in result.reading and f"{result.values['pairs, largest']:.3f}" in result.reading


def test_columns_that_forget_each_other_are_seen_in_pairs_only(people):
    """Each column shuffled by itself: no column is farther than before, and pairs are."""
    random = np.random.default_rng(0)
    columns = [random.permutation(column) for column in zip(*cells(people), strict=True)]
    rows = [[str(cell) for cell in row] for row in zip(*columns, strict=True)]
    found = measure(subject(rows, people), len(rows)).values
    assert found["columns, largest"] < 1e-9
    assert found["pairs, largest"] > 0.2 > 3 * found["pairs, mean distance of fresh rows"]
    assert found["copies %"] < 5


def test_laws_that_share_nothing():
    table = Table((Column("x", "float", ((0.0, 1.0, 1.0),)), Column("c", "category", (), ("a", "b"))))
    mine, theirs = [["5.0", "a"]] * 4, [["-5.0", "b"]] * 6
    found = distances(table, values(table, mine), values(table, theirs))
    assert found.columns == {"x": 1.0, "c": 1.0} and found.pairs == {"x x c": 1.0}


def test_one_column_and_missing_numbers_only(tmp_path):
    """Nothing to pair; a picture all the same."""
    table = Table((Column("a $ sign", "float", ((0.0, 1.0, 1.0),), missing=True),))
    points = table.encode([[""]] * 30)
    known = Dataset(name="alone", images=points, table=table)
    result = measure(Subject.of_samples(points, known), 30)
    assert result.values["pairs, largest"] == 0 == result.values["columns, largest"]
    result.pictures["table.png"](tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_pictures_of_people(people, tmp_path):
    result = measure(subject(cells(people)[:500], people), 500)
    result.pictures["table.png"](tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 10_000


def test_what_does_not_suit(people):
    assert "rows of a table" in suits(data.load("digits")) and suits(people) is None
    with pytest.raises(UserError, match="cannot be compared"):
        metric("table").measure(Subject.of_samples(torch.zeros(4, 2), data.load("ring8")), 4)
    other = Table(people.table.columns[::-1])
    stranger = Subject.of_samples(people.images[:10], people, table=other)
    with pytest.raises(UserError, match="other columns or categories"):
        measure(stranger, 10)
