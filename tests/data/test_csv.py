"""`csv:PATH`: kinds of columns, delimiters, encodings, what is missing, and what is refused with its line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.data import Dataset, load
from fastgan.errors import UserError


def table_of(folder: Path, text: str | bytes) -> Dataset:
    (folder / "t.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return load(f"csv:{folder / 't.csv'}")


def decoded(data: Dataset) -> list[list[str]]:
    assert data.table is not None
    return data.table.decode(data.images)


def one(folder: Path, cells: list[str]) -> tuple[str, tuple[str, ...]]:
    data = table_of(folder, "\n".join(["x,y", *(f'"{cell}",0' for cell in cells)]))
    assert data.table is not None
    column = data.table.columns[0]
    return column.kind, column.categories


@pytest.mark.parametrize(
    ("cells", "kind", "categories"),
    [
        (["3", "1", "10"], "category", ("1", "3", "10")),
        (["3.0", "1", ""], "category", ("1", "3", "")),
        ([str(at) for at in range(20)], "category", tuple(map(str, range(20)))),
        ([str(at) for at in range(21)], "integer", ()),
        (["1.5", "2"], "float", ()),
        (["1.5", "NA", "1e3", "-.5", "+2."], "float", ()),
        (["2.5", "2.5"], "float", ()),
        (["99999999999999999999", "1"], "float", ()),
        (["a", "b", "1"], "category", ("1", "a", "b")),
        (["007", "008"], "category", ("007", "008")),
        (["1,5", "2,5"], "category", ("1,5", "2,5")),
        (["1_000", "2"], "category", ("1_000", "2")),
        (["\u0661", "\u0662"], "category", ("\u0661", "\u0662")),
        (["a", "", "NULL", "n/a", "?"], "category", ("a", "")),
        (["", "NaN"], "category", ("",)),
        (["5", "5"], "category", ("5",)),
        (["inf", "word"], "category", ("inf", "word")),
    ],
)
def test_kinds(tmp_path: Path, cells: list[str], kind: str, categories: tuple[str, ...]) -> None:
    assert one(tmp_path, cells) == (kind, categories)


def test_a_mixed_table_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    rows = [
        [
            str(rng.integers(18, 90)),
            str(np.float32(rng.normal())),
            'a "b", c' if at % 3 else "d\ne",
            "" if at % 4 else "7.5",
        ]
        for at in range(500)
    ]
    rows[7][3] = "8.25"
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["age", "x y", "job", "rare"], *rows])
    data = load(f"csv:{tmp_path / 't.csv'}")
    assert data.table is not None and data.images.shape == (500, data.table.width) and data.images.is_contiguous()
    assert [column.kind for column in data.table.columns] == ["integer", "float", "category", "float"]
    for row, back in zip(rows, decoded(data), strict=True):
        assert (row[0], row[2], row[3]) == (back[0], back[2], back[3])
        assert abs(float(row[1]) - float(back[1])) < 1e-6
    assert torch.equal(load(f"csv:{tmp_path / 't.csv'}").images, data.images)
    assert data.to("cpu").table == data.table


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_and_encodings(tmp_path: Path, mark: str, encoding: str, end: str) -> None:
    text = end.join((mark.join(("grün", "b")), mark.join(('"x,;y"', "1")), "", mark.join(("ß", "2"))))
    data = table_of(tmp_path, text.encode(encoding))
    assert data.table is not None and [column.name for column in data.table.columns] == ["grün", "b"]
    assert decoded(data) == [["x,;y", "1"], ["ß", "2"]]


def test_an_empty_line_is_a_missing_cell_of_a_lone_column(tmp_path: Path) -> None:
    """Between others, not at the end; among several columns it is no row."""
    data = table_of(tmp_path, "a\n1.5\n\n\n2.5\n\n\n")
    assert decoded(data) == [["1.5"], [""], [""], ["2.5"]]
    assert data.table is not None and data.table.columns[0].missing
    assert decoded(table_of(tmp_path, "\n\na,b\n1.5,x\n\n2.5,y\n")) == [["1.5", "x"], ["2.5", "y"]]


def test_small_tables(tmp_path: Path) -> None:
    assert decoded(table_of(tmp_path, "a\n1")) == [["1"]]
    assert decoded(table_of(tmp_path, "a\nx\ny\n")) == [["x"], ["y"]]
    assert decoded(table_of(tmp_path, "a,\n1,2")) == [["1", "2"]]  # the second has no name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("a,b\n", "no rows"),
        ("1,2\n3,4", "begins with a row of numbers"),
        ("a,b\n1,2\n\n3\n", "line 4: 1 cells where the header has 2"),
        ("a,b\n1,2,3\n", "line 2: 3 cells where the header has 2"),
        ("a,b,a\n1,2,3", "the column 'a' twice"),
        ('a,b\n1,"2\n3,4\n', "line 3: .*mend its quotes"),
        ('a,b\n1,"2"x\n', "line 2: .*mend its quotes"),
        ("a,b\n1,2\n1,1e999\n", "line 3: '1e999' in column 'b' is infinite or beyond float32"),
        ("a,b\n1,1e300\n", "line 2: '1e300' in column 'b'"),
        ("a,b\n-inf,1\n", "line 2: '-inf' in column 'a'"),
        (
            "a,b\n" + "".join(f"word{at},1\n" for at in range(10_000)),
            "column 'a' has more than 1,000 .*'word0' in line 2",
        ),
        (b"a,b\n\xe9,1\n", "is not UTF-8"),
        (b"\x00\xff" * 1000, "UTF-8|header|rows"),
        ("a,b\n1," + "x" * 200_000, "line 2: field larger"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        table_of(tmp_path, text)
    assert "\n" not in str(caught.value) and str(tmp_path / "t.csv") in str(caught.value)


def test_no_file_and_no_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not there"):
        load(f"csv:{tmp_path / 'none.csv'}")
    with pytest.raises(UserError, match="no test split"):
        load(f"csv:{tmp_path / 'none.csv'}", split="test")


def test_too_large_for_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgan.data.csv_file.available_memory", lambda: 5)
    with pytest.raises(UserError, match="2 rows of 2 numbers take"):
        table_of(tmp_path, "a\n1\n2\n")
