"""The examples run as they stand."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert "step 2:" in capsys.readouterr().out


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("agg")
    shown: list[object] = []
    names: dict[str, object] = {"display": shown.append}
    cells = json.loads((FOLDER / "textbook.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for at, source in enumerate(sources):
        exec(compile(source, f"textbook.ipynb, code cell {at}", "exec"), names)
        names["STEPS"] = 3
    assert "the same outputs: True" in capsys.readouterr().out
    assert len(shown) == 2


def test_the_notebook_says_nothing_of_the_machine_it_ran_on() -> None:
    text = (FOLDER / "textbook.ipynb").read_text(encoding="utf-8")
    assert not any(folder in text for folder in ("/home/", "/root/", "/tmp/", "site-packages"))
