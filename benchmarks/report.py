"""``fastgan bench report``: tables and pictures of docs/benchmarks.md and docs/quality.md, and the README's table.

What stands outside the marks stays as it is. What no record holds reads "not measured".
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastgan.benchmarks import report_tables as tables
from fastgan.benchmarks.findings import RESULTS, Findings, collect
from fastgan.benchmarks.forecasts import PREDICTED, Forecast, beside, load
from fastgan.benchmarks.marks import placed
from fastgan.benchmarks.quality_page import page as quality
from fastgan.benchmarks.report_plots import draw
from fastgan.errors import UserError

ROOT = RESULTS.parent.parent
RESULTS_MARK, SPEED_MARK, QUALITY_MARK = "results", "speed", "quality"


def main(arguments: Sequence[str]) -> int:
    """Write the report. Returns 0, or 1 with ``--check`` where a page does not say what the records say."""
    options = parse(arguments)
    for path in (options.results, options.page, options.readme, options.quality):
        if not path.exists():
            raise UserError(f"no {path} here: run it in a clone, or name another (--results, --page, --readme)")
    found = collect(options.results)
    pictures = {one.device: pictured(one, options) for one in found}
    contents = {
        options.page: (RESULTS_MARK, "\n".join(results(found, load(options.predictions), pictures))),
        options.readme: (SPEED_MARK, "\n".join(tables.short(found))),
        options.quality: (QUALITY_MARK, "\n".join(quality(options.results / "quality"))),
    }
    stale = []
    for path, (mark, content) in contents.items():
        text = path.read_text(encoding="utf-8")
        if (new := placed(text, mark, content)) != text:
            stale.append(str(path))
            if not options.check:
                path.write_text(new, encoding="utf-8")
    return said(options, found, stale)


def said(options: argparse.Namespace, found: Sequence[Findings], stale: Sequence[str]) -> int:
    """Say what was done and return the exit code."""
    if options.check and stale:
        print(f"not what the records say: {' and '.join(stale)}; `fastgan bench report` writes them anew")
        return 1
    files, rows = sum(len(one.files) for one in found), sum(len(one.rows) for one in found)
    verb = "agree with" if options.check else "written from"
    print(f"{options.page} and {options.readme}: {verb} {files} records, {rows} rows")
    return 0


def pictured(mine: Findings, options: argparse.Namespace) -> list[str]:
    """Draw what can be drawn; return the lines that show it, with links from the page to where pictures belong."""
    lines = []
    for title, name in draw(mine, None if options.check else options.pictures):
        link = os.path.relpath(options.pictures / name, options.page.parent)
        lines += [f"![{title}]({Path(link).as_posix()})", ""]
    return lines


def results(found: Sequence[Findings], known: Sequence[Forecast], pictures: dict[str, list[str]]) -> Iterator[str]:
    """Yield the page's part: a section for each device, and the predictions."""
    if not any(one.device != "CPU" for one in found):
        yield "No GPU has measured anything yet."
        yield ""
        yield from section(None, [])
    for mine in found:
        yield f"### {mine.device}"
        yield ""
        yield from section(mine, pictures.get(mine.device, []))
    yield "### Predicted beside measured"
    yield ""
    yield from beside(known, found)


def section(mine: Findings | None, pictures: Sequence[str]) -> Iterator[str]:
    """Yield what is known of a device: a title and a table of each kind."""
    parts = [
        ("Training steps, by the host's clock, in microseconds:", tables.races(mine)),
        ("Layers and other ops: geometric means of how many times faster than the best other:", tables.ops(mine)),
        ("What the device can do at most:", tables.ceilings(mine)),
    ]
    if mine is not None:
        parts.insert(1, ("The same at the published batches, by every clock:", tables.details(mine)))
        for suite in (*tables.OPS, *tables.OTHERS):
            parts.append((f"Suite `{suite}`, in microseconds:", tables.listing(mine, suite)))
        parts.append(("Where these rows come from:", tables.sources(mine)))
    for at, (title, table) in enumerate(parts):
        if lines := list(table):
            yield from (title, "", *lines, "")
        if at == 0:
            yield from pictures


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command's own words."""
    from fastgan.benchmarks.command import Parser

    parser = Parser(prog="fastgan bench report", description="Write tables and pictures of the pages from the records.")
    for name, default, what in (
        ("--results", RESULTS, "the folder of the records"),
        ("--predictions", PREDICTED, "the folder of the predictions"),
        ("--page", ROOT / "docs" / "benchmarks.md", "the page with the marks of the results"),
        ("--readme", ROOT / "README.md", "the page with the marks of the short table"),
        ("--quality", ROOT / "docs" / "quality.md", "the page with the marks of the published figures' tables"),
        ("--pictures", ROOT / "docs" / "pictures", "where pictures are written"),
    ):
        parser.add_argument(name, type=Path, default=default, metavar="PATH", help=f"{what} ({default})")
    parser.add_argument("--check", action="store_true", help="write nothing: exit code 1 where a page would change")
    return parser.parse_args(arguments)
