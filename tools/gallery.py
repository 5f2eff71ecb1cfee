"""Trains what docs/gallery.md shows, and writes each exhibit's picture, command and figures into that page.

    python tools/gallery.py --runs runs/gallery            # all; what is trained is not trained again
    python tools/gallery.py --runs runs/gallery ring8 vae  # these

An exhibit is a run of a preset in a form that a CPU trains in minutes. Its place in the page are the marks of its name.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastgan.benchmarks.marks import place
from fastgan.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "pictures" / "gallery"
HEIGHT, WIDTH, GAP = 300, 1100, 12
Result = dict[str, Any]  # what ``fastgan evaluate --json`` says of a metric


@dataclass(frozen=True)
class Exhibit:
    """A run: a preset, its steps and settings; then what is shown of it.

    Attributes:
        preset, steps, settings: these.
        metrics: to evaluate.
        sample: arguments of a ``fastgan sample`` whose picture is shown in place of the run's last one.
        pictures: of the run's folder, written by the metrics, shown in place of samples and curves.
        shown: one of them, shown in place of samples alone.
        run: the exhibit whose run it is; its own by default.
    """

    preset: str
    steps: int
    settings: Sequence[str] = ()
    metrics: Sequence[str] = ()
    sample: Sequence[str] = ()
    pictures: Sequence[str] = ()
    shown: str = ""
    run: str = ""

    @property
    def command(self) -> str:
        """What a person types."""
        return " ".join(["fastgan train", self.preset, f"--steps {self.steps}", *(f"--set {s}" for s in self.settings)])


SMALL = ["image_size=null", "generator.width=64", "discriminator.width=64", "threads=1", "checkpoint_every=1000"]
RATES = [
    f"{side}_optimizer.{key}"
    for side, rate in (("generator", "1e-3"), ("discriminator", "1e-4"))
    for key in (f"lr={rate}", "betas=[0.5,0.999]")
]
EXHIBITS: dict[str, Exhibit] = {
    "gan-mnist-2014": Exhibit("gan-mnist-2014", 6000, ["threads=1"], ["precision-recall"]),
    "gan-digits": Exhibit("gan-digits", 10_000, (), ["precision-recall", "diversity"]),
    "mlp": Exhibit("mlp", 6000, ["threads=1"], ["precision-recall"]),
    "dcgan": Exhibit(
        "dcgan", 3000, ["generator.width=16", "discriminator.width=16", "threads=1"], ["precision-recall"]
    ),
    "dcgan-64": Exhibit(  # the file is the user's to bring
        "dcgan-64",
        1500,
        ["data=npz:emoji64.npz", "generator.width=16", "discriminator.width=16", "batch_size=64", "threads=1"],
        ["swd"],
    ),
    "lsgan": Exhibit("lsgan", 2500, ["data=digits", *SMALL], ["precision-recall"]),
    "hinge-sngan": Exhibit("hinge-sngan", 2000, ["threads=1"], ["precision-recall"]),
    "wgan": Exhibit("wgan", 5000, ["data=digits", "threads=1"], ["precision-recall"]),
    "wgan-gp": Exhibit("wgan-gp", 2500, ["data=digits", *SMALL], ["precision-recall"]),
    "rpgan-r1r2": Exhibit("rpgan-r1r2", 2500, ["data=digits", *SMALL], ["precision-recall"]),
    "cgan": Exhibit("cgan", 10_000, (), ["precision-recall", "classes"], ["--class", "rows"]),
    "acgan": Exhibit("acgan", 3000, (), ["precision-recall", "classes"], ["--class", "rows"]),
    "ring8": Exhibit("ring8", 12_000, (), ["modes"]),
    "grid25": Exhibit("grid25", 12_000, (), ["modes"]),
    "pacgan": Exhibit("pacgan", 12_000, (), ["modes"]),
    "stacked-mnist": Exhibit("stacked-mnist", 4000, ["threads=1"], ["stacked-mnist"]),
    "ctgan": Exhibit("ctgan", 3000, metrics=["table"], shown="evaluation/table.png"),
    "vae": Exhibit("vae", 10_000, (), ["precision-recall"]),
    "nce": Exhibit("nce", 10_000),
    "predictability-minimization": Exhibit("predictability-minimization", 3000),
    "dropped-modes": Exhibit(
        "ring8",
        3000,
        [
            *("generator.norm=false", "generator.hidden=[128,128,128]", "generator.init_std=0"),
            *("discriminator.maxout=0", "discriminator.init_std=0", *RATES),
        ],
        ["modes"],
    ),
    "collapse": Exhibit(
        "gan-digits", 2000, ["generator_optimizer.lr=1e-2", "generator.norm=false"], ["diversity", "precision-recall"]
    ),
    "ignored-z": Exhibit("acgan", 2000, ["class_weight=30"], ["interpolation", "classes"], ["--class", "rows"]),
    "adversarial": Exhibit(
        "gan-digits",
        10_000,
        metrics=["adversarial"],
        pictures=[f"evaluation/adversarial-{of}.png" for of in ("classifier", "discriminator")],
        run="gan-digits",
    ),
}
TRICKS = {  # each of DCGAN's tricks taken back on the 8x8 digits
    "all four": [],
    "pooling, no strides": ["generator.strided=false", "discriminator.strided=false"],
    "no batch norm": ["generator.norm=false", "discriminator.norm=false"],
    "hidden layers": ["generator.hidden=256", "discriminator.hidden=256"],
    "tanh everywhere": ["generator.activation=tanh", "discriminator.activation=tanh"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure and write what is asked for. Returns 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description="Train and write the exhibits of docs/gallery.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all of them otherwise")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gallery", help="where the runs are kept")
    options = parser.parse_args(arguments)
    try:
        for name in options.names or (*EXHIBITS, "dcgan-tricks"):
            if name == "dcgan-tricks":
                ablation(options.runs / name)
            elif name not in EXHIBITS:
                raise UserError(f"there is no exhibit {name!r}: dcgan-tricks, {', '.join(EXHIBITS)}")
            else:
                exhibit(name, EXHIBITS[name], options.runs / (EXHIBITS[name].run or name))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def exhibit(name: str, what: Exhibit, run: Path) -> None:
    """Train one where it is not trained yet, measure it, and write its place in the page."""
    train(what, run)
    shown = run / (what.shown or "final.png")
    if what.sample:
        shown = run / "shown.png"
        fastgan("sample", str(run), "--seed", "0", "--out", str(shown), *what.sample)
    PICTURES.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines(name, what, run))
    paths = [run / picture for picture in what.pictures] or [shown, run / "curves.png"]
    beside([path for path in paths if path.exists()], PICTURES / f"{name}.png")
    place(PAGE, name, text)
    print(f"{name}: {PICTURES / name}.png")


def ablation(runs: Path) -> None:
    """Train DCGAN with all its tricks, and with each of them taken back; set the samples side by side."""
    table = ["| | precision | recall |", "|---|---:|---:|"]
    shown = []
    for label, settings in TRICKS.items():
        run = runs / label.replace(" ", "-").replace(",", "")
        what = Exhibit("dcgan", 2500, ["data=digits", *SMALL, "samples=36", *settings], ["precision-recall"])
        train(what, run)
        shown.append(run / "final.png")
        values = results(what, run)[0]["values"]
        table.append(f"| {label} | {values['precision']:.2f} | {values['recall']:.2f} |")
    PICTURES.mkdir(parents=True, exist_ok=True)
    beside(shown, PICTURES / "dcgan-tricks.png")
    picture = f"![samples with {'; '.join(TRICKS)}](pictures/gallery/dcgan-tricks.png)"
    command = Exhibit("dcgan", 2500, ["data=digits", *SMALL]).command
    order = f"From left to right: {'; '.join(TRICKS)}. The command is that of {next(iter(TRICKS))}; the others add:"
    added = [f"- {label}: `{' '.join(f'--set {key}' for key in keys)}`" for label, keys in TRICKS.items() if keys]
    place(PAGE, "dcgan-tricks", "\n".join([*fenced(command), "", picture, "", order, "", *added, "", *table]))


def lines(name: str, what: Exhibit, run: Path) -> list[str]:
    """What stands in the page: command, picture, figures, alarms."""
    found = results(what, run)
    if what.pictures:
        more = [f"fastgan evaluate runs/{what.preset} --metric {metric}" for metric in what.metrics]
        picture = f"![{name}](pictures/gallery/{name}.png)"
        return [*fenced(what.command, *more), "", picture, "", *(line for one in found for line in table(one))]
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    seconds, images = float(last["seconds"]), int(last["images"])
    took = f"{images:,} real samples in {seconds / 60:.1f} minutes without a GPU"
    picture = f"![{name}: samples and curves](pictures/gallery/{name}.png)"
    return [*fenced(what.command), "", picture, "", *bullets([took, *map(measured, found), alarms(run)])]


def table(result: Result) -> list[str]:
    """Values that are named "of what: which", a column for each of the former; below, how they were measured."""
    cells = {tuple(name.split(": ", 1)): value for name, value in result["values"].items()}
    columns, rows = (list(dict.fromkeys(key[part] for key in cells)) for part in (0, 1))
    found = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row in rows:
        values = (short(cells[column, row]) if (column, row) in cells else "" for column in columns)
        found.append(f"| {row} | " + " | ".join(values) + " |")
    return [*found, "", f"<sub>{result['protocol']}</sub>"]


def fenced(*commands: str) -> list[str]:
    """Commands as the page shows them."""
    return ["```", *commands, "```"]


def bullets(said: Sequence[str]) -> list[str]:
    """One line for each."""
    return [f"- {line}" for line in said if line]


def train(what: Exhibit, run: Path) -> None:
    """Train it, or go on where it was stopped."""
    going_on = ["--resume"] if run.exists() else []
    settings = [word for setting in what.settings for word in ("--set", setting)]
    fastgan("train", what.preset, "--steps", str(what.steps), *settings, "--out", str(run), *going_on)


def results(what: Exhibit, run: Path) -> list[Result]:
    """What ``fastgan evaluate`` finds, metric by metric."""
    found = []
    for metric in what.metrics:
        out = fastgan("evaluate", str(run), "--metric", metric, "--json", "--seed", "0")
        found += json.loads(out)["results"]
    return found


def measured(result: Result) -> str:
    """A metric's values, its protocol in small print."""
    values = ", ".join(f"{name} {short(value)}" for name, value in result["values"].items())
    return f"`{result['metric']}`: {values}<br><sub>{result['protocol']}</sub>"


def short(value: float) -> str:
    """Three digits, or whole numbers: 0.829, 26,000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def alarms(run: Path) -> str:
    """What the alarms said, in a line."""
    path = run / "alarms.csv"
    if not path.exists():
        return "alarms: none"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [f"step {row['step']} {row['alarm']} {row['event']}" for row in csv.DictReader(file)]
    more = f", and {len(rows) - 4} more" if len(rows) > 4 else ""
    return "alarms: " + "; ".join(rows[:4]) + more


def beside(paths: Sequence[Path], out: Path) -> None:
    """Set pictures side by side at one height, in 64 colours where that does: a page of many loads quickly."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    scaled = [
        one.resize((max(1, round(one.width * HEIGHT / one.height)), HEIGHT), Image.Resampling.LANCZOS)
        for one in pictures
    ]
    sheet = Image.new("RGB", (sum(one.width for one in scaled) + GAP * (len(scaled) - 1), HEIGHT), "white")
    left = 0
    for one in scaled:
        sheet.paste(one, (left, 0))
        left += one.width + GAP
    if sheet.width > WIDTH:
        sheet = sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width)), Image.Resampling.LANCZOS)
    colours = len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0))
    (sheet.quantize(128) if colours > 128 else sheet).save(out, optimize=True)


def fastgan(*words: str) -> str:
    """Run the command and return what it prints; its progress goes to this terminal."""
    done = subprocess.run([sys.executable, "-m", "fastgan", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"fastgan {' '.join(words)} ended with exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
