"""What ``fastgan.convert`` reports of models as people write them, at the published sizes; nothing is computed.

    python -m fastgan.benchmarks.drop_in_page [--style dcgan] [--page docs/drop-in.md]

``--page`` writes the reports of all styles into that page, between the lines that mark their place.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from fastgan.benchmarks.drop_in_models import STYLES, Style
from fastgan.errors import UserError

BEGIN, END = "<!-- reports: begin -->", "<!-- reports: end -->"


def report(style: Style) -> Iterator[str]:
    """Yield what there is to say of a style's networks."""
    with torch.device("meta"):
        for letter, network in style.networks(full=True).named().items():
            yield from reported(style, letter, network)


def reported(style: Style, letter: str, network: nn.Module) -> Iterator[str]:
    """Yield the report of one network in the form of a page."""
    from fastgan.nn.drop_in import convert

    told = convert(network)
    share = told.covered(*style.inputs(letter, style.nothing(2 * style.pack)))
    percent = math.floor(100 * share)
    yield f"`print(fastgan.convert({letter}))`; {percent}% of a forward pass's FLOPs run in what was replaced:"
    yield ""
    yield from (f"    {line}".rstrip() for line in str(told).splitlines())
    yield ""


def page() -> str:
    """Return the reports of all styles."""
    return "\n".join(map(section, STYLES))


def section(style: Style) -> str:
    """Return what the page says of one style."""
    return "\n".join([f"### {style.title[0].upper()}{style.title[1:]}", "", *report(style)])


def placed(text: str, reports: str) -> str:
    """Return a page's text with other reports between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"the page has no lines {BEGIN} and {END}: write them where the reports belong")
    return f"{before}{BEGIN}\n\n{reports}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print or place the reports."""
    known = {style.name: style for style in STYLES}
    parser = argparse.ArgumentParser("python -m fastgan.benchmarks.drop_in_page", description="Show conversions.")
    parser.add_argument("--style", choices=known, default="dcgan")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the reports into a page")
    options = parser.parse_args(argv)
    try:
        if options.page is not None:
            options.page.write_text(placed(options.page.read_text(encoding="utf-8"), page()), encoding="utf-8")
        else:
            print("\n".join(report(known[options.style])))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
