"""Rows of a table that have the categories that somebody wants.

A generator that is told a category is told the rarest of them; rows that miss any are left out and others drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgan.data.table import Table
from fastgan.errors import UserError, unknown
from fastgan.train.conditions import told
from fastgan.train.generate import Generator
from fastgan.train.latents import drawn

LEAST = 256  # rows in a round
ROUNDS = 200  # of as many rows as are asked for
LISTED = 30  # categories in a message


@dataclass(frozen=True)
class Condition:
    """A category that rows must have.

    Attributes:
        said: as it was said.
        column: its column's place among all columns.
        at: where in a point the column's one-hot begins, and where it ends.
        place: of the category in it.
        told: its place among all categories of the table.
    """

    said: str
    column: int
    at: tuple[int, int]
    place: int
    told: int

    def met(self, points: Tensor) -> Tensor:
        """Which of points ``(n, width)`` have it, as `Table.decode` reads them."""
        return points[:, slice(*self.at)].argmax(1) == self.place


def conditions(table: Table, said: Sequence[str]) -> list[Condition]:
    """Read ``COLUMN=CATEGORY`` texts; an empty category is the missing one.

    Raises:
        UserError: No such column or category, a column of numbers, a column twice.
    """
    names = [column.name for column in table.columns]
    found: list[Condition] = []
    for text in said:
        signs = [at for at, letter in enumerate(text) if letter == "="]
        named = next((at for at in signs if text[:at].strip() in names), signs[0] if signs else None)
        if named is None:
            raise UserError(f"--where {text}: write it as COLUMN=CATEGORY, with a column of {_having(table)}")
        name, category = text[:named].strip(), text[named + 1 :].strip()
        if name not in names:
            raise unknown("column", name, names)
        condition = _condition(table, text, names.index(name), category)
        if any(condition.column == other.column for other in found):
            raise UserError(f"--where {text}: the column {name!r} can have one category; it was given another before")
        found.append(condition)
    return found


def rows(
    generator: Generator, n: int, wanted: Sequence[Condition], seed: int, truncation: float | None = None
) -> tuple[Tensor, int]:
    """Draw ``n`` points that meet all conditions, and say how many had to be drawn.

    Raises:
        UserError: Too few of 200 n drawn rows do, or the generator is told classes.
    """
    if generator.classes:
        raise UserError("--where: this generator is told classes, which a table has none of")
    config, random = generator.config, torch.Generator().manual_seed(seed)
    onehot = _onehot(generator, wanted)
    found: list[Tensor] = []
    number, size = 0, max(n, LEAST)
    for again in range(ROUNDS):
        z = drawn(config.latent, config.z_dim, size, random, truncation)
        if onehot is not None:
            z = torch.cat((z, onehot.to(z).expand(size, -1)), 1)
        points = generator.make(z, seed=(seed + again) % 2**63)
        met = torch.stack([condition.met(points) for condition in wanted]).all(0)
        have = sum(map(len, found))
        if have + int(met.sum()) >= n:
            last = int(met.nonzero().flatten()[n - have - 1]) + 1
            return torch.cat([*found, points[:last][met[:last]]]), number + last
        found.append(points[met])
        number += size
    what = " and ".join(condition.said for condition in wanted)
    have = sum(map(len, found))
    fewer = f", or ask for fewer (--n {have})" if have else ""
    raise UserError(f"--where: {have} of {number:,} rows that were drawn have {what}: train further{fewer}")


def _condition(table: Table, said: str, column: int, category: str) -> Condition:
    known = table.columns[column]
    if known.kind != "category":
        raise UserError(
            f"--where {said}: {known.name!r} holds numbers, and rows are chosen by categories: {_having(table)}"
        )
    try:
        place = int(known.encode([category], np.random.default_rng(0)).argmax())
    except ValueError as error:
        if known.choices <= LISTED:
            raise unknown(f"category of {known.name!r}", category, known.categories) from error
        raise UserError(f"--where {said}: {error}") from error
    start = sum(before.width for before in table.columns[:column])
    first = sum(before.choices for before in table.columns[:column] if before.kind == "category")
    return Condition(said, column, (start, start + known.width), place, first + place)


def _having(table: Table) -> str:
    names = [column.name for column in table.columns if column.kind == "category"]
    return ", ".join(names) or "this table has no column of them"


def _onehot(generator: Generator, wanted: Sequence[Condition]) -> Tensor | None:
    """What stands behind the latents of a generator that is told a category."""
    if not told(generator.module):
        return None
    shares: Tensor = generator.module.shares.cpu()  # type: ignore[assignment]
    rarest = min(wanted, key=lambda condition: float(shares[condition.told]))
    return torch.nn.functional.one_hot(torch.tensor(rarest.told), told(generator.module))
