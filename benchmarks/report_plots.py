"""Findings as pictures: speed-up by batch, the roofline, and where a step's time goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastgan.benchmarks.findings import Findings, Step, steps, works
from fastgan.benchmarks.record import Timed
from fastgan.benchmarks.speedups import OURS
from fastgan.errors import require

KINDS = {  # what a kernel's name says it does, in small letters; the first that fits
    "norms": r"batch_norm|bn_fw|bn_bw|welford",
    "convolutions": r"conv_(fwd|bwd_\w+)_kernel|cudnn|conv|wgrad|dgrad|fprop",
    "linear layers": r"linear_\w*kernel|gemm|cutlass|cublas|nvjet|splitk",
    "optimisers": r"optimizer_step|multi_tensor|foreach|adam",
    "losses and penalties": r"loss_kernel|norm_penalty|interpolate_kernel|cross_entropy",
    "samples and metrics": r"latent_kernel|real_batch_kernel|tick_kernel|distribution|index",
    "copies": r"memcpy|memset|copy|cat|transpose|nchw|nhwc",
    "elementwise": r"bias_act|elementwise|vectorized|triton_poi|reduce|triton_per|triton_red",
}
OTHER = "other"
PALETTE = "#4269d0 #3ca951 #efb118 #a463f2 #ff725c #6cc5b0 #97bbf5 #9c6b4e #c8c8c8"
COLORS = dict(zip((*KINDS, OTHER), PALETTE.split(), strict=True))
OURS_COLOR, THEIRS_COLOR = "#d1495b", "#7a8794"


def draw(mine: Findings, folder: Path | None) -> Iterator[tuple[str, str]]:
    """Write each picture that the findings allow; yields what it shows and its file's name; None: writes nothing."""
    pictures: dict[str, tuple[str, Callable[[Findings, Any], bool]]] = {
        "speedup": ("How many times faster a step of the engine is than the best rung, by batch", speedup),
        "roofline": ("Products of layers on the roofline: ours, and the best other", roofline),
        "parts": ("Where a step's kernel time goes: the engine, and the best rung", parts),
    }
    for name, (title, drawn) in pictures.items():
        figure = new_figure()
        if drawn(mine, figure):
            file = f"benchmarks-{name}-{mine.slug}.png"
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                figure.suptitle(f"{title}\n{mine.device}", fontsize=10)
                figure.tight_layout()
                figure.savefig(folder / file, dpi=110, metadata={"Software": None})
            yield title, file


def new_figure() -> Any:
    """Return an empty figure that no window shows."""
    return require("matplotlib.figure", why="drawing the report's pictures").Figure(figsize=(8, 4.6))


def speedup(mine: Findings, figure: Any) -> bool:
    """Draw ours over the best rung, by batch; a point whose difference may be noise is hollow."""
    lines: dict[str, list[tuple[int, float, bool]]] = {}
    for step in steps(mine):
        own, best = step.row(OURS[0]), step.best
        if own is not None and best is not None and own.wall_us and best.wall_us:
            sure = best.wall_us.differs(own.wall_us)
            lines.setdefault(step.workload, []).append((step.batch, best.wall_us.median / own.wall_us.median, sure))
    axes = figure.add_subplot()
    for name, points in lines.items():
        x, y = [point[0] for point in points], [point[1] for point in points]
        (line,) = axes.plot(x, y, label=name, linewidth=1.5)
        for batch, times, sure in points:
            face = line.get_color() if sure else "white"
            axes.plot([batch], [times], "o", color=line.get_color(), markerfacecolor=face)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("batch")
    axes.set_ylabel("times faster (hollow: within noise)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize=8)
    return bool(lines)


def roofline(mine: Findings, figure: Any) -> bool:
    """Draw rates over operations a byte, below what the same run has measured as the most."""
    points: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for rows in works([*mine.of("linear"), *mine.of("conv")]).values():
        right = [row for row in rows.values() if row.passed and row.tflops and row.gbs]
        ours = next((row for row in right if row.variant == OURS[0]), None)
        others = [row for row in right if row.variant not in OURS]
        for row in (ours, max(others, key=lambda one: one.tflops or 0.0, default=None)):
            if row is not None and row.tflops and row.gbs:
                points[row is ours].append((row.tflops / row.gbs * 1e3, row.tflops))
    if not points[True]:
        return False
    axes = figure.add_subplot()
    for own, label, color in ((False, "best other", THEIRS_COLOR), (True, "fastgan auto", OURS_COLOR)):
        axes.plot(*zip(*points[own], strict=True), ".", label=label, color=color, alpha=0.75) if points[own] else None
    found = mine.ceilings
    every = [intensity for own in points.values() for intensity, _ in own]
    x = [min(every) / 2, max(every) * 2]
    if found.copy_gbs:
        for dtype, most in found.tflops.items():
            knee = most / found.copy_gbs * 1e3
            grid = sorted({x[0], *([knee] if x[0] < knee < x[1] else []), x[1]})
            axes.plot(
                grid, [min(most, at * found.copy_gbs / 1e3) for at in grid], linewidth=1, color="black", alpha=0.6
            )
            axes.annotate(dtype, (x[1], min(most, x[1] * found.copy_gbs / 1e3)), fontsize=7, ha="right", va="bottom")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("TFLOP/s")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="lower right")
    return True


def parts(mine: Findings, figure: Any) -> bool:
    """Draw kernel time by what kernels do: two bars for each published step."""
    bars: list[tuple[str, Mapping[str, float]]] = []
    for step in steps(mine):
        if step.published:
            bars += [(f"{step.workload}, {label}", by_kind(row)) for label, row in shown(step) if row.parts]
    if not bars:
        return False
    axes = figure.add_subplot()
    for at, (_, sums) in enumerate(reversed(bars)):
        whole, left = sum(sums.values()), 0.0
        for kind, us in sums.items():
            axes.barh(at, us / whole, left=left / whole, color=COLORS[kind], height=0.8)
            left += us
        axes.text(1.01, at, f"{whole:,.0f} us", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [label for label, _ in reversed(bars)], fontsize=8)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    used = [kind for kind in COLORS if any(kind in sums for _, sums in bars)]
    handles = [axes.barh(0, 0, color=COLORS[kind]) for kind in used]
    axes.legend(handles, used, fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.1))
    return True


def shown(step: Step) -> list[tuple[str, Timed]]:
    """Return the engine's row and the best rung's."""
    pairs = [("fastgan", step.row(OURS[0])), (f"{step.best.variant}" if step.best else "", step.best)]
    return [(label, row) for label, row in pairs if row is not None]


def by_kind(row: Timed) -> dict[str, float]:
    """Sum a row's kernel time up by what kernels do, in the order of the legend."""
    sums = dict.fromkeys(COLORS, 0.0)
    for name, us in (row.parts or {}).items():
        sums[kind_of(name)] += us
    return {kind: us for kind, us in sums.items() if us}


def kind_of(name: str) -> str:
    """Return what a kernel does, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), OTHER)
