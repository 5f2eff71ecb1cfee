"""What the pages say can be followed: links lead somewhere, commands exist, nothing speaks of one machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "csrc").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_can_be_followed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", text, re.MULTILINE)) <= set(targets)
    assert re.findall(r"/(?:home|root|Users)/\S+", text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_trainings_can_be_typed(page: Path) -> None:
    """Options, keys and their values are those that there are."""
    pytest.importorskip("tyro")
    from fastgan.cli import train
    from fastgan.cli.arguments import parse
    from fastgan.presets import ALIASES, PRESETS

    for command in re.findall(r"(?m)^(?:    )?fastgan train (.+)$", page.read_text(encoding="utf-8")):
        wishes = parse(train.Arguments, "train", shlex.split(command, comments=True))
        if wishes.target in {*PRESETS, *ALIASES}:
            train._config(wishes, train._keys(wishes))
