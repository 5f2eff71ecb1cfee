"""What a command writes into a page: the text between two lines that mark its place. The rest of the page stays."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from fastgan.errors import UserError


def placed(text: str, name: str, content: str) -> str:
    """Return a page's text with other content between the marks of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise UserError(f"the page has no lines {begin} and {end}: write them where the {name} belong")
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"


def place(page: Path, name: str, content: str) -> None:
    """Write content between the marks of a page."""
    page.write_text(placed(page.read_text(encoding="utf-8"), name, content), encoding="utf-8")


def add_option(parser: ArgumentParser, name: str) -> None:
    """Add ``--page FILE``."""
    parser.add_argument("--page", type=Path, metavar="FILE", help=f"write the {name} into a page")


def serve(options: Namespace, name: str, page: Callable[[], str], shown: Callable[[], str]) -> int:
    """Place ``page()`` where ``--page`` says, or print what is ``shown()``; a mistake is one line and exit code 2."""
    try:
        if options.page is not None:
            place(options.page, name, page())
        else:
            print(shown())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
