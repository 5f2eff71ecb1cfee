"""Text between marks: the rest of a page stays, and a page without them is refused."""

from __future__ import annotations

import pytest

from fastgan.benchmarks.marks import placed
from fastgan.errors import UserError

PAGE = "before\n<!-- rows: begin -->\nold\n<!-- rows: end -->\nafter\n"


def test_what_stands_between_the_marks_is_replaced() -> None:
    new = placed(PAGE, "rows", "\nnew\n\n")
    assert new == "before\n<!-- rows: begin -->\n\nnew\n\n<!-- rows: end -->\nafter\n"
    assert placed(new, "rows", "new") == new


@pytest.mark.parametrize("text", ["", "<!-- rows: begin -->", "<!-- rows: end -->\n<!-- rows: begin -->"])
def test_a_page_without_marks_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"has no lines <!-- rows: begin -->"):
        placed(text, "rows", "new")
