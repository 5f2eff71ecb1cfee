"""`people`: a made-up table of mixed columns, drawn with a fixed seed, to try tables with."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import torch

from fastgan.data.csv_file import read
from fastgan.data.dataset import Dataset

ROWS = 5000
_SEEDS = {"train": 1905, "test": 1906}
HEADER = ("age", "job", "member", "income", "children", "distance")
_JOBS = ("clerk", "cook", "nurse", "teacher", "judge")
_SHARES = (0.4, 0.25, 0.2, 0.12, 0.03)
_INCOMES = (2400.0, 1900.0, 2900.0, 3600.0, 7800.0)


def load(name: str, path: str | None, *, split: str, allow_download: bool) -> Dataset:
    """Draw the table, the same at every call, and read it as a file of its text would be (``csv:``)."""
    table, points = read(io.BytesIO(text(split).encode()), name)
    made = Dataset(name, torch.from_numpy(points), table=table)
    return replace(made, license="none needed: drawn by this program", source="made up, drawn with a fixed seed")


def text(split: str = "train", rows: int = ROWS) -> str:
    """The table as the text of a CSV file.

    ``age`` is a whole number of two groups; ``job`` a category, its rarest one 3% of the rows; ``member`` yes or no,
    likelier with age; ``income`` follows the job; ``children`` are few; ``distance`` is missing in a tenth of the rows.
    """
    random = np.random.default_rng(_SEEDS[split])
    job = random.choice(len(_JOBS), rows, p=_SHARES)
    young = random.random(rows) < 0.45
    age = np.where(young, random.normal(27, 4, rows), random.normal(52, 7, rows)).round().clip(18, 80).astype(int)
    member = random.random(rows) < (age - 10) / 80
    income = np.asarray(_INCOMES)[job] * random.normal(1, 0.08, rows) + 8 * (age - 40)
    children = random.poisson(np.where(young, 0.5, 1.8)).clip(max=5)
    distance = random.gamma(2.0, 6.0, rows)
    absent = random.random(rows) < 0.1
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    for at in range(rows):
        far = "" if absent[at] else f"{distance[at]:.1f}"
        yes = "yes" if member[at] else "no"
        writer.writerow([age[at], _JOBS[job[at]], yes, f"{income[at]:.2f}", children[at], far])
    return file.getvalue()
