"""When a number is what the theory says, and that every module's claims are told, each under its function's name."""

import math
import re
from pathlib import Path

import pytest

from fastgan.evaluate import theory
from fastgan.evaluate.theory import Claim, Measured, checks, name_of


@pytest.mark.parametrize(
    "value, expected, tolerance, relation, holds",
    [
        (1.0, 1.0, None, "equals", True),
        (1.1, 1.0, 0.2, "equals", True),
        (0.7, 1.0, 0.2, "equals", False),
        (1.3, 1.0, 0.2, "equals", False),
        (math.inf, math.inf, None, "equals", True),
        (1.0, 1.0, None, "at_least", True),
        (0.9, 1.0, 0.2, "at_least", True),
        (0.7, 1.0, 0.2, "at_least", False),
        (5.0, 1.0, None, "at_least", True),
        (math.inf, 1.0, None, "at_least", True),
        (1.0, 1.0, None, "at_most", True),
        (1.1, 1.0, 0.2, "at_most", True),
        (1.3, 1.0, 0.2, "at_most", False),
        (-5.0, 1.0, None, "at_most", True),
        (3.0, None, None, "equals", True),
        (math.nan, None, None, "equals", False),
    ],
)
def test_a_number_holds_where_it_is_what_is_expected(value, expected, tolerance, relation, holds):
    assert Measured("a number", value, expected, tolerance, relation).holds is holds


@pytest.mark.parametrize("relation", ["equals", "at_least", "at_most"])
def test_nan_never_holds(relation):
    assert not Measured("a number", math.nan, 0.0, 1e9, relation).holds


def test_a_claim_holds_where_all_its_numbers_do():
    right, wrong = Measured("one", 1.0, 1.0), Measured("two", 2.0, 1.0)
    assert Claim("name", "statement", "source", (right, right)).holds
    assert not Claim("name", "statement", "source", (right, wrong)).holds


def test_claims_are_named_after_their_functions():
    def what_is_claimed(seed=0):
        raise NotImplementedError

    assert name_of(what_is_claimed) == "what-is-claimed"


def test_every_module_with_claims_is_told_once():
    written = [
        path.stem
        for path in Path(theory.__file__).parent.glob("*.py")
        if "\nCLAIMS" in path.read_text(encoding="utf-8")
    ]
    assert sorted(theory.MODULES) == sorted(written)
    assert len(checks()) >= 21


def test_the_page_tells_every_claim_in_order():
    docs = Path(theory.__file__).parents[3] / "docs"
    page = (docs / "theory.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^### (.*)$", page) == list(checks())
    pictures = re.findall(r"\]\((pictures/theory-(.*)\.png)\)", page)
    assert {name for _, name in pictures} <= set(checks())
    assert all((docs / path).stat().st_size < 60_000 for path, _ in pictures)
