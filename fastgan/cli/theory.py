"""``fastgan theory``: check each claim of the theory by numbers, print them, and draw them. Exit code 1: one fails."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgan.cli.arguments import Flag, Text, folder, parse
from fastgan.cli.output import say
from fastgan.errors import UserError, require, unknown
from fastgan.evaluate.theory import Check, Claim, checks, figure_1, report
from fastgan.train.files import replacing

FAILED = 1


@dataclass(frozen=True)
class Arguments:
    """Check the theory of GANs by numbers: every claim with what was measured beside what is expected."""

    out: Text = None
    """A folder for a picture of each claim, and theory.md, a page that shows them all."""
    only: tuple[str, ...] = ()
    """Names of claims; without any, all are checked."""
    film: Text = None
    """A folder for figure 1 of Goodfellow et al., 2014, as a film: frames/NNN.png and figure-1.gif. Nothing else is
    done then."""
    json: Flag = False
    """Print one JSON document instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    wishes = parse(Arguments, "theory", arguments)
    wanted = _wanted(wishes.only)
    if wishes.film is not None and (wishes.out is not None or wishes.only or wishes.json):
        raise UserError("--film draws figure 1 and nothing else: leave --out, --only and --json out")
    if wishes.film is not None:
        return _film(_place(folder("--film", wishes.film), "--film") or Path())
    out = _place(folder("--out", wishes.out))
    findings = []
    for finding in _checked(wanted):
        findings.append(finding)
        if not wishes.json:
            say(report.lines(finding))
        if out is not None and finding.claim is not None:
            _draw(finding.claim, out)
    if out is not None:
        with replacing(out / "theory.md", again="run it again") as page:
            page.write_text(report.page(findings), encoding="utf-8")
    holds = all(finding.verdict != "FAILS" for finding in findings)
    if wishes.json:
        say(json.dumps({"holds": holds, "claims": [report.data(finding) for finding in findings]}, indent=1))
    else:
        say(report.summary(findings) + (f": see {out / 'theory.md'}" if out is not None else ""))
    return 0 if holds else FAILED


def _wanted(only: Sequence[str]) -> dict[str, Check]:
    """The claims that are asked for. Raises UserError with the nearest name for one that does not exist."""
    known = checks()
    for name in only:
        if name not in known:
            raise unknown("claim", name, known)
    return {name: check for name, check in known.items() if not only or name in only}


def _place(out: Path | None, option: str = "--out") -> Path | None:
    """The folder for pictures, made before anything is computed, and nothing computed that cannot be drawn."""
    if out is not None:
        require("matplotlib.figure", why=f"fastgan theory {option}")
        if out.exists() and not out.is_dir():
            raise UserError(f"{option} {out}: that is a file; name a folder")
        out.mkdir(parents=True, exist_ok=True)
    return out


def _checked(wanted: dict[str, Check]) -> Iterator[report.Finding]:
    """Check one claim after the other. One whose package is missing stays unchecked, or, if asked for alone, raises."""
    tqdm = require("tqdm", why="the progress bar").tqdm
    with tqdm(total=len(wanted), unit="claim", file=sys.stderr, disable=None, leave=False) as bar:
        for name, check in wanted.items():
            bar.set_description(name)
            start = time.perf_counter()
            try:
                claim, why_not = check(), ""
            except UserError as error:
                if len(wanted) == 1:
                    raise
                claim, why_not = None, str(error)
            with tqdm.external_write_mode():
                yield report.Finding(name, claim, time.perf_counter() - start, why_not)
            bar.update()


def _draw(claim: Claim, out: Path) -> None:
    """Draw a claim into ``out/NAME.png``, whole or not at all."""
    figure = report.picture(claim)
    if figure is not None:
        with replacing(out / f"{claim.name}.png", again="run it again") as path:
            figure.savefig(path, format="png")


def _film(out: Path) -> int:
    """Write the frames of figure 1, and the GIF that they make, each whole or not at all."""
    tqdm = require("tqdm", why="the progress bar").tqdm
    (out / "frames").mkdir(exist_ok=True)
    moments = figure_1.play()
    frames = []
    with tqdm(total=len(figure_1.shown(moments)), unit="frame", file=sys.stderr, disable=None, leave=False) as bar:
        for number, figure in enumerate(figure_1.film(moments)):
            frames.append(out / "frames" / f"{number:03}.png")
            with replacing(frames[-1], again="run it again") as path:
                figure.savefig(path, format="png")
            bar.update()
    with replacing(out / "figure-1.gif", again="run it again") as path:
        figure_1.animate(frames, path)
    say(f"{out / 'figure-1.gif'}: {len(frames)} frames, step 0 to {moments[-1].step}; each is in {out / 'frames'}")
    return 0
