"""The floors of the house: docs/architecture.md says which may import which, the sources are held to it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("kernels", "benchmarks")  # floors at the top of the tree, reached as fastgan.<name>
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
SOURCES = [
    path
    for top in ("fastgan", *OUTSIDE, "tests", "tools")
    for path in sorted((ROOT / top).rglob("*.py"))
    if not (top == "fastgan" and path.relative_to(ROOT).parts[1] in OUTSIDE)
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in [*SOURCES, ROOT / "setup.py"]}


def allowed_edges(page: str) -> dict[str, list[str]]:
    """The table of the page, in its order: floor -> what it may import."""
    rows = re.findall(r"(?m)^\| `(\w+)` \|([^|]*)\|", page)
    return {floor: re.findall(r"`(\w+)`", edges) for floor, edges in rows}


EDGES = allowed_edges((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def floor_of(path: str) -> str | None:
    """The floor that a source file stands on; None for the package root and for what is not in the package."""
    top, *rest = Path(path).with_suffix("").parts
    if top in OUTSIDE:
        return top
    return rest[0] if top == "fastgan" and not rest[0].startswith("__") else None


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import in a file, inside functions too, and of each import by a literal name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                origin = "." * level + (module or "")
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in names)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[argument, *_]):
                if name in ("import_module", "require", "__import__"):
                    yield from ((node.lineno, text) for text in beginning(argument))


def beginning(argument: ast.expr) -> Iterator[str]:
    """The text of a literal, or how an f-string begins."""
    match argument:
        case ast.Constant(value=str(text)) | ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            yield text


def faults(source: str, floor: str | None, edges: dict[str, list[str]]) -> list[str]:
    """What the imports of one file do against the rules of the house."""
    found = []
    for line, name in imported(ast.parse(source)):
        first, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if name.startswith("."):
            found.append(f"{line}: relative import")
        elif first in OUTSIDE:
            found.append(f"{line}: import {name}: it is fastgan.{name}")
        elif first == "fastgan" and floor and target not in (floor, "__version__", *edges[floor]):
            found.append(f"{line}: {floor} may not import {name}")
    return found


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from outside_functions(child)


def posix_only(source: str) -> set[str]:
    """Modules that Windows lacks, imported when the file is."""
    imports = [node for node in outside_functions(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for _, name in imported(ast.Module(imports, []))} & POSIX_ONLY


def test_table_and_folders_name_the_same_floors() -> None:
    assert set(EDGES) == {floor for path in TEXTS if (floor := floor_of(path))}


def test_imports_keep_to_the_table() -> None:
    known = {path: text for path, text in TEXTS.items() if floor_of(path) in {None, *EDGES}}
    assert {path: found for path, text in known.items() if (found := faults(text, floor_of(path), EDGES))} == {}


def test_table_runs_downward() -> None:
    order = list(EDGES)
    upward = [(floor, e) for floor, edges in EDGES.items() for e in edges if order.index(e) <= order.index(floor)]
    assert upward == []


def test_symlinks_lead_to_the_floors_at_the_top() -> None:
    for name in OUTSIDE:
        link = ROOT / "fastgan" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


def test_files_are_short_and_named_for_what_they_hold() -> None:
    assert {path: lines for path, text in TEXTS.items() if (lines := text.count("\n")) >= 350} == {}
    assert [path for path in TEXTS if Path(path).stem in ("util", "utils", "helpers", "misc", "common")] == []


def test_no_import_of_what_windows_lacks() -> None:
    package = {path: text for path, text in TEXTS.items() if path.startswith(("fastgan/", *OUTSIDE))}
    assert {path: found for path, text in package.items() if (found := posix_only(text))} == {}


@pytest.mark.parametrize(
    ("floor", "source"),
    [
        ("ops", "from fastgan.nn import LinearAct"),
        ("ops", "from fastgan import nn"),
        ("ops", "def late():\n    import fastgan.train.step"),
        ("ops", "import fastgan"),
        ("data", "from fastgan import load"),
        ("data", "importlib.import_module('fastgan.train')"),
        ("data", "import_module(f'fastgan.train.{name}')"),
        ("nn", "from . import linear"),
        ("nn", "from ..ops import linear"),
        ("benchmarks", "import kernels.linear"),
        (None, "from benchmarks import audit"),
    ],
)
def test_each_kind_of_fault_is_seen(floor: str | None, source: str) -> None:
    assert len(faults(source, floor, EDGES)) == 1


def test_what_is_allowed_passes() -> None:
    assert faults("from fastgan.kernels import linear\nfrom fastgan import __version__, ops", "ops", EDGES) == []


def test_posix_only_modules_are_seen_where_they_count() -> None:
    assert posix_only("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None") == {"fcntl"}
    assert posix_only("def lock():\n    import fcntl") == set()
    assert posix_only("class Lock:\n    def take(self):\n        import fcntl") == set()
