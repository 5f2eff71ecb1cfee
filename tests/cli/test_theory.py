"""``fastgan theory``: claims in words, as JSON, and as pictures; a wrong name is a mistake, a false claim is not."""

import json
import sys

import pytest
from PIL import Image

pytest.importorskip("tyro")

QUICK = ("jensen-shannon-is-blind-to-distance", "what-each-loss-descends")
PLANE = "critic-estimates-wasserstein-in-the-plane"


def theory(*arguments):
    from fastgan.cli import main

    return main(["theory", *map(str, arguments)])


@pytest.fixture
def claims(monkeypatch):
    """Two claims that cost nothing, the second of which is false."""
    from fastgan.cli import theory as verb
    from fastgan.evaluate.theory import Claim, Measured

    def one_is_one(seed=0):
        return Claim("one-is-one", "One is one.", "arithmetic", (Measured("one", 1.0, 1.0),))

    def one_is_two(seed=0):
        return Claim("one-is-two", "One is two.", "nobody", (Measured("one", 1.0, 2.0),))

    monkeypatch.setattr(verb, "checks", lambda: {"one-is-one": one_is_one, "one-is-two": one_is_two})


def test_a_claim_is_told_with_its_numbers(capsys):
    assert theory("--only", QUICK[0]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"holds: {QUICK[0]}")
    assert "0.346574 +- 1e-12" in said.out
    assert said.out.endswith("1 of 1 claims hold\n")
    assert said.err == ""  # no bar where nobody watches


def test_a_claim_that_fails_is_exit_code_1(claims, capsys):
    assert theory() == 1
    assert "FAILS: one-is-two" in capsys.readouterr().out
    assert theory("--only", "one-is-one") == 0
    assert theory("--json") == 1


def test_json_is_one_document(capsys):
    assert theory("--json", "--only", *reversed(QUICK)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["holds"] is True
    assert [claim["name"] for claim in document["claims"]] == list(QUICK)
    assert all(number["holds"] for claim in document["claims"] for number in claim["measured"])


def test_out_is_a_page_of_pictures(tmp_path, capsys):
    for _ in range(2):  # what is there from before is drawn anew
        assert theory("--out", tmp_path / "new" / "folder", "--only", *QUICK) == 0
    folder = tmp_path / "new" / "folder"
    assert str(folder / "theory.md") in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == sorted([*(f"{name}.png" for name in QUICK), "theory.md"])
    page = (folder / "theory.md").read_text(encoding="utf-8")
    for name in QUICK:
        assert f"![{name}]({name}.png)" in page
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.size == (1100, 400)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--only", "what-each-los-descends"], "did you mean 'what-each-loss-descends'?"),
        (["--only", "phlogiston"], "unknown claim 'phlogiston'"),
        (["--out", ""], "--out is empty"),
        (["--out", "file"], "that is a file"),
        (["--film", "file"], "--film file: that is a file"),
        (["--film", "f", "--json"], "leave --out, --only and --json out"),
        (["--seed", "1"], "--seed"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert theory(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line


def test_a_package_that_is_missing_leaves_a_claim_unchecked(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert theory("--only", PLANE) == 2
    assert "pip install 'fastgan[eval]'" in capsys.readouterr().err
    assert theory("--only", PLANE, QUICK[1]) == 0
    said = capsys.readouterr().out
    assert f"not checked: {PLANE}" in said
    assert "1 of 2 claims hold" in said


@pytest.mark.parametrize("package", ["tyro", "tqdm"])
def test_a_package_that_the_verb_needs_is_named(monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert theory("--only", QUICK[1]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"'{package}'" in line


def test_a_missing_matplotlib_is_named_before_anything_is_computed(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert theory("--out", tmp_path / "out") == 2
    assert "'matplotlib'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
