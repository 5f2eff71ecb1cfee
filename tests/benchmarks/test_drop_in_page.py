"""The page about drop-in conversion shows what the command prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastgan.benchmarks import drop_in_page
from fastgan.benchmarks.drop_in_models import STYLES, Style

PAGE = Path(__file__).resolve().parents[2] / "docs" / "drop-in.md"
MEND = "`python -m fastgan.benchmarks.drop_in_page --page docs/drop-in.md` writes them anew"


SHARES = {"mlp": 95, "dcgan": 95, "ctgan": 95}  # per cent of the FLOPs, at least


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_the_page_shows_what_the_command_prints(style: Style) -> None:
    """And most of the work is replaced, at the sizes that were published."""
    section = drop_in_page.section(style)
    shares = [int(share) for share in re.findall(r"; (\d+)% of a forward", section)]
    assert len(shares) == (1 if style.name == "stylegan2" else 2)
    assert min(shares) >= SHARES.get(style.name, 80)
    assert section in PAGE.read_text(encoding="utf-8"), MEND


def test_the_page_shows_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(
        r"(?m)^### .*$", PAGE.read_text(encoding="utf-8").partition(f"<!-- {drop_in_page.MARKED}: end -->")[0]
    )
    monkeypatch.setattr(drop_in_page, "report", lambda style: [])
    assert shown == [line for line in drop_in_page.page().splitlines() if line]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drop_in_page.main(["--style", "ctgan"]) == 0
    assert "BatchNorm1d + ReLU" in capsys.readouterr().out
    assert drop_in_page.main(["--page", str(tmp_path / "absent.md")]) == 2
