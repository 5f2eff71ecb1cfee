"""Findings as text, data, pictures and a page."""

import json
import math

import pytest

from fastgan.evaluate.theory import Claim, Measured, report
from fastgan.evaluate.theory.report import Finding

NUMBERS = (
    Measured("V(D*, G) | it", 1.5, 1.4, 0.2),
    Measured("a bound", math.inf, 2.0, None, "at_least"),
    Measured("just shown", 3.25),
)


def finding(*numbers, name="a-claim", draw=None):
    return Finding(name, Claim(name, "It is\nso.", "somebody 2014", numbers or NUMBERS, draw), 1.25)


UNCHECKED = Finding("another-claim", None, 0.0, "needs a package")
FAILED = finding(Measured("a number", 1.0, 2.0), name="third-claim")


def test_lines_show_each_number_beside_what_is_expected():
    title, statement, source, *numbers = report.lines(finding()).strip().splitlines()
    assert title == "holds: a-claim (1.2 s)"
    assert statement.strip() == "It is so."
    assert source.strip() == "[somebody 2014]"
    words = [line.split() for line in numbers]
    assert words[0][-4:] == ["1.5", "1.4", "+-", "0.2"]
    assert words[1][-4:] == ["inf", "at", "least", "2"]
    assert words[2] == ["ok", "just", "shown", "3.25"]


def test_lines_say_what_fails_and_what_was_not_checked():
    assert report.lines(FAILED).startswith("FAILS: third-claim")
    assert "    NO  a number" in report.lines(FAILED)
    assert report.lines(UNCHECKED).split("\n") == ["not checked: another-claim (0.0 s)", "  needs a package", ""]


def test_summary_names_what_does_not_hold():
    assert report.summary([finding(), finding()]) == "2 of 2 claims hold"
    said = report.summary([finding(), FAILED, UNCHECKED])
    assert said == "1 of 3 claims hold; FAILS: third-claim; not checked: another-claim"


def test_data_is_strict_json():
    text = json.dumps([report.data(found) for found in (finding(), FAILED, UNCHECKED)], allow_nan=False)
    first, second, third = json.loads(text)
    assert [number["value"] for number in first["measured"]] == [1.5, "inf", 3.25]
    assert first["statement"] == "It is so."
    assert [entry["verdict"] for entry in (first, second, third)] == ["holds", "FAILS", "not checked"]
    assert third["why_not"] == "needs a package"


def test_page_shows_pictures_and_escapes_signs():
    page = report.page([finding(draw=lambda axes: None), FAILED, UNCHECKED])
    assert "![a-claim](a-claim.png)" in page
    assert "![third-claim]" not in page
    assert r"| V(D\*, G) \| it | 1.5 | 1.4 +- 0.2 | yes |" in page
    assert "| **no** |" in page
    assert "needs a package" in page


def test_picture_has_the_panels_asked_for():
    pytest.importorskip("matplotlib")
    seen = []
    claim = Claim("a-claim", "It is so.", "somebody", NUMBERS, lambda axes: seen.append(len(axes)), panels=3)
    figure = report.picture(claim)
    assert seen == [3]
    assert len(figure.axes) == 3
    assert report.picture(Claim("a-claim", "It is so.", "somebody", NUMBERS)) is None
