"""``fastgan evaluate RUN``: what a trained generator is worth, as numbers with their protocol."""

from __future__ import annotations

import functools
import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from fastgan import __version__, data
from fastgan.benchmarks.environment import commit, now
from fastgan.cli.arguments import Flag, Text, Whole, folder, home, parse, shown
from fastgan.cli.output import say
from fastgan.errors import UserError, require
from fastgan.evaluate import METRICS, Result, Subject, extractors, metric, options_of
from fastgan.presets.own import is_marked
from fastgan.presets.values import coerce
from fastgan.train import run as runs
from fastgan.train.files import replacing
from fastgan.train.generate import EXPORTED, WEIGHTS, Generator, load_discriminator, load_generator
from fastgan.train.latents import Layout, between

OPTIONS = ("features", "oracle")  # of single metrics


@dataclass(frozen=True)
class Arguments:
    """Measure what a trained generator is worth. Without a run: list the metrics."""

    run: Annotated[str | None, tyro.conf.Positional, shown("RUN")] = None
    """The run's folder, such as runs/gan-digits, a checkpoint in it, or a .safetensors that 'fastgan export' wrote."""
    metric: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")] = ()
    """What to measure. Repeatable. Default: all that suit the data and are cheap."""
    n: Whole = None
    """How many samples. Default: as many as the metric's protocol says."""
    data: Text = None
    """Data set to compare with. Default: what the run was trained on."""
    features: Text = None
    """Extractor for fid, kid and precision-recall: random-projection, digits-classifier, or a function of yours
    (n, C, H, W) -> (n, k) as MODULE:FUNCTION."""
    oracle: Flag = False
    """parzen: training images in place of samples, what the estimator gives for perfect ones."""
    seed: Whole = None
    """Seed of latents and of random choices. Default: 0."""
    which: Annotated[str, tyro.conf.arg(metavar="ema|raw")] = "ema"
    """ema: the averaged weights, where the run keeps an average; raw: those of the last update."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Text = None
    """Folder for pictures. Default: RUN/evaluation."""
    json: Flag = False
    """Print one JSON document instead of text."""
    list: Flag = False
    """List the metrics."""


@dataclass(frozen=True)
class Findings:
    """What was measured, and why the rest was not."""

    results: tuple[Result, ...]
    skipped: Mapping[str, str]


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    wishes = parse(Arguments, "evaluate", arguments)
    if wishes.list or wishes.run is None:
        say(_overview())
        return 0
    run = folder("RUN", wishes.run) or Path()
    out = _room(folder("--out", wishes.out) or home(run) / "evaluation")
    n = None if wishes.n is None else _between("--n", wishes.n, 2, 2**31 - 1)
    seed = 0 if wishes.seed is None else _between("--seed", wishes.seed, 0, 2**32 - 1)
    options = _options(wishes)
    generator = load_generator(run, wishes.device, wishes.which)
    subject = _subject(run, generator, wishes.data, seed)
    findings = _measured(subject, wishes.metric, n, options)
    drawn, failure = _drawn(findings.results, out)
    origin = {"run": str(run), "step": generator.step, "weights": generator.which, "data": subject.data.name}
    if wishes.json:
        say(json.dumps(_document({**origin, "seed": seed}, findings, drawn), indent=1))
    else:
        say(f"{run}: step {generator.step}, {subject.weights}, against {subject.data.name}, seed {seed}\n")
        for result, paths in zip(findings.results, drawn, strict=True):
            say(_lines(result, paths))
        for name, why in findings.skipped.items():
            say(f"not measured: {name} ({why})")
    if failure:
        raise failure
    return 0


def _options(wishes: Arguments) -> dict[str, Any]:
    """What was said of single metrics. Raises UserError for what none of those that were named has."""
    said = {name: value for name in OPTIONS if (value := getattr(wishes, name)) not in (None, False)}
    known = {name: options_of(name) for name in wishes.metric or METRICS if wishes.metric or metric(name).CHEAP}
    if wishes.features is not None:
        extractors.check(wishes.features)
    for option in said:
        if not any(option in of for of in known.values()):
            having = [name for name in METRICS if option in options_of(name)]
            to = ", ".join(wishes.metric) or f"what is measured unasked: add --metric {having[0]}"
            raise UserError(f"--{option} says nothing to {to}; it is an option of {', '.join(having)}")
    return said


def _room(out: Path) -> Path:
    """The folder itself. Raises UserError, before anything is measured, where a file is in its way."""
    there = next(path for path in (out, *out.parents) if path.exists() or path == path.parent)
    if there.exists() and not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file: name a folder")
    return out


def _subject(run: Path, generator: Generator, named: str | None, seed: int) -> Subject:
    """The generator with its data, as metrics take it: those that a limit has left it, unless others are named."""
    spec, config = named, generator.config
    if spec is None:
        if run.suffix.lower() == EXPORTED:
            raise UserError(f"{run} does not say what it was trained on: name it, such as --data digits")
        spec = runs.opened(run)[0].data
        if is_marked(spec):
            raise UserError(
                f"{run} was trained on data of its own ({spec}): save them and name the file, --data npz:FILE"
            )
    shape = generator.sample_shape
    size = shape[-1] if len(shape) == 3 and shape[-1] == shape[-2] else None  # others are taken as they lie
    load = functools.partial(data.load, spec, image_size=size)
    whole = load()
    if whole.sample_shape != shape:
        shapes = f"{whole.sample_shape}, and the generator makes {shape}"
        raise UserError(f"the data set {spec!r} has samples of shape {shapes}: name the data it was trained on, --data")

    limit = config.limit if named is None else None
    trained_on = whole.part(0, limit)
    law = _law(generator, trained_on)

    def latents(n: int, seed: int) -> torch.Tensor:
        return Layout(n).latents(config.latent, config.z_dim, torch.Generator().manual_seed(seed))

    def finite(samples: torch.Tensor) -> torch.Tensor:
        if not samples.isfinite().all():
            raise UserError(
                f"{run} makes samples that are not finite: name an earlier checkpoint, RUN/checkpoints/NAME"
            )
        return samples

    def sample(n: int) -> torch.Tensor:
        if law is None:
            return finite(generator.sample(n, seed))
        random = torch.Generator().manual_seed(seed)
        z = Layout(n).latents(config.latent, config.z_dim, random)
        return finite(generator.make(z, law[torch.randint(len(law), (n,), generator=random)], seed=seed))

    return Subject(
        sample=functools.lru_cache(maxsize=2)(sample),
        data=trained_on,
        rest=None if limit is None else whole.part(limit),
        make=lambda z, labels=None: finite(generator.make(z, labels)),
        latents=latents,
        between=None if getattr(generator.module, "random", False) else functools.partial(between, config.latent),
        classes=generator.classes,
        held_out=lambda: load(split="test") if "test" in data.splits(spec) else None,
        discriminator=load_discriminator(run, str(generator.device)),
        table=generator.table,
        seed=seed,
        weights=WEIGHTS[generator.which],
        labels=_told(generator, law),
    )


def _law(generator: Generator, trained_on: data.Dataset) -> torch.Tensor | None:
    """Labels to draw from, so that classes are as frequent as in training; None where these are not known."""
    labels = trained_on.labels
    known = generator.classes and labels is not None and int(labels.max()) < generator.classes
    return labels if known else None


def _told(generator: Generator, law: torch.Tensor | None) -> str:
    if not generator.classes:
        return ""
    return "all classes as often" if law is None else "classes as often as in the data"


def _measured(subject: Subject, wanted: Sequence[str], n: int | None, options: Mapping[str, Any]) -> Findings:
    """Measure what is wanted, else what suits and is cheap. Raises UserError for one that was named and cannot be."""
    results, skipped = [], {}
    reasons = {name: metric(name).suits(subject.data) for name in wanted or METRICS}
    for name, reason in reasons.items():
        if reason and wanted:
            raise UserError(f"{name} does not apply: {reason}")
    tqdm = require("tqdm", why="the progress bar").tqdm
    with tqdm(total=len(reasons), unit="metric", file=sys.stderr, disable=None, leave=False) as bar:
        for name, reason in reasons.items():
            bar.set_description(name)
            kept = {option: value for option, value in options.items() if option in options_of(name)}
            if not wanted and not metric(name).CHEAP:
                reason = reason or f"it takes its time: ask for it, --metric {name}"
            try:
                if not reason:
                    results.append(metric(name).measure(subject, n, **kept))
            except UserError as error:
                if wanted:
                    raise
                reason = str(error)
            if reason:
                skipped[name] = reason
            bar.update()
    return Findings(tuple(results), skipped)


def _drawn(results: Sequence[Result], out: Path) -> tuple[list[list[Path]], UserError | None]:
    """Draw all pictures, each whole or not at all, and return where they are, and why one is not.

    Numbers that were measured are printed in any case.
    """
    drawn: list[list[Path]] = [[] for _ in results]
    for result, paths in zip(results, drawn, strict=True):
        try:
            if result.pictures:
                require("matplotlib.figure", why=f"the picture of {result.metric}")
            for name, draw in result.pictures.items():
                with replacing(out / name, again="measure again") as temporary:
                    draw(temporary)
                paths.append(out / name)
        except UserError as error:
            return drawn, error
    return drawn, None


def _lines(result: Result, paths: Sequence[Path]) -> str:
    """A result as a paragraph for a terminal."""
    width = max(len(name) for name in result.values)
    lines = [result.metric]
    lines += [f"  {name:{width}}  {value:.6g}" for name, value in result.values.items()]
    published = f"published: {result.published}" if result.published else ""
    for text in (result.reading, result.protocol, published, f"[{result.reference}]" if result.reference else ""):
        lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
    return "\n".join([*lines, *(f"  see {path}" for path in paths), ""])


def _document(origin: Mapping[str, Any], findings: Findings, drawn: Sequence[Sequence[Path]]) -> dict[str, Any]:
    """All as plain values for JSON, which has no word for infinity: those are text."""
    results = [
        {
            "metric": result.metric,
            "values": {name: value if math.isfinite(value) else str(value) for name, value in result.values.items()},
            "reading": result.reading,
            "protocol": result.protocol,
            "published": result.published,
            "reference": result.reference,
            "pictures": [str(path) for path in paths],
        }
        for result, paths in zip(findings.results, drawn, strict=True)
    ]
    software = {"fastgan": __version__, "torch": torch.__version__, "date": now(), **commit()}
    return {**origin, **software, "results": results, "not_measured": dict(findings.skipped)}


def _overview() -> str:
    lines = ["usage: fastgan evaluate RUN [--metric NAME] [options]     (--help says more)", ""]
    return "\n".join([*lines, *(f"  {name:18} {what}" for name, what in METRICS.items())])


def _between(option: str, value: object, least: int, most: int) -> int:
    number: int = coerce(option, value, int)
    if not least <= number <= most:
        raise UserError(f"{option} must be between {least} and {most}, not {number}")
    return number
