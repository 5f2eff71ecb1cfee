"""What ``fastgan.convert`` reports of models as people write them, at the published sizes; nothing is computed.

    python -m fastgan.benchmarks.drop_in_page [--style dcgan] [--page docs/drop-in.md]

``--page`` writes the reports of all styles into that page, between the lines that mark their place.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from fastgan.benchmarks import marks
from fastgan.benchmarks.drop_in_models import STYLES, Style

MARKED = "reports"  # the place in a page


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


def main(argv: Sequence[str] | None = None) -> int:
    """Print or place the reports."""
    known = {style.name: style for style in STYLES}
    parser = argparse.ArgumentParser("python -m fastgan.benchmarks.drop_in_page", description="Show conversions.")
    parser.add_argument("--style", choices=known, default="dcgan")
    marks.add_option(parser, MARKED)
    options = parser.parse_args(argv)
    return marks.serve(options, MARKED, page, lambda: "\n".join(report(known[options.style])))


if __name__ == "__main__":
    sys.exit(main())
