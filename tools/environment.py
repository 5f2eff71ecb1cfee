"""Fill a virtual environment with what constraints.txt names, and never replace a torch that is in it already.

The Makefile runs this before anything is installed: standard library only, and in words that Python 3.7 can read, so
that an old interpreter gets the line that says so rather than a SyntaxError.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON_FLOOR = (3, 11)
TORCH_FLOOR = (2, 11)
NEWER = f"name a newer one, make PYTHON=python{PYTHON_FLOOR[0]}.{PYTHON_FLOOR[1]}"
PAIR = ("torch", "triton")  # each torch goes with one triton: they are kept or installed together

PROBE = f"""
import json, sys
found = {{"python": sys.version_info[:2]}}
if sys.version_info >= {PYTHON_FLOOR}:
    from importlib.metadata import PackageNotFoundError, version
    for name in {("pip", *PAIR)}:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
print(json.dumps(found))
"""


class SetupError(Exception):
    """Set-up cannot go on: one line that says why and how to mend it."""


def dotted(version: tuple[int, ...]) -> str:
    """(3, 11) -> "3.11"."""
    return ".".join(map(str, version))


def release(version: str) -> tuple[int, int]:
    """The first two numbers of a version: "2.13.0+cpu" -> (2, 13)."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def check_python(version: tuple[int, ...], where: str, mend: str) -> None:
    """Refuse a Python that is too old."""
    if version < PYTHON_FLOOR:
        has, need = dotted(version), dotted(PYTHON_FLOOR)
        raise SetupError(f"{where} is Python {has}, and {need} or later is needed: {mend}")


def check_torch(version: str, where: str) -> None:
    """Refuse a torch that is too old: it is somebody's, so it is not replaced either."""
    if release(version) < TORCH_FLOOR:
        need = dotted(TORCH_FLOOR)
        raise SetupError(
            f"torch {version} in {where} is older than {need} and is never replaced by set-up: "
            f"upgrade it yourself, or name another folder, make VENV=.venv-fastgan"
        )


def probe(python: Path, where: str) -> dict[str, Any]:
    """What a Python is and has: its version, and those of pip, torch and triton where they are installed."""
    ask = [str(python), "-c", PROBE]
    try:
        answer = subprocess.run(ask, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        raise SetupError(f"the Python of {where} does not run: remove that folder and run make again") from None
    found: dict[str, Any] = json.loads(answer.stdout)
    check_python(tuple(found["python"]), where, "remove that folder, or name another one, make VENV=FOLDER")
    return found


def constrain(tested: str, found: dict[str, Any]) -> tuple[str, list[str]]:
    """Let an installed torch and its triton take the place of the tested pair.

    Returns the constraints for pip, and what to tell the user about it.
    """
    if "torch" not in found:
        return tested, []
    notes = []
    wanted = dict(re.findall(r"(?m)^(\S+)==(\S+)$", tested))
    for name in PAIR:
        has, pin = found.get(name), f"{name}=={wanted[name]}"
        if has and has.split("+")[0] != wanted[name]:
            notes.append(f"keeping {name} {has} (tested with {wanted[name]})")
        if has:
            tested = tested.replace(pin, f"{name}=={has}")
        elif release(found["torch"]) != release(wanted["torch"]):
            tested = tested.replace(pin, f"# {name}: whichever goes with that torch")
    return tested, notes


def create(venv: Path) -> None:
    """Make the virtual environment; a Debian without its venv package is told the package's name."""
    check_python(sys.version_info[:2], sys.executable, NEWER)
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment, it lacks ensurepip: "
            f"install Debian's package python3-venv (apt install python3-venv)"
        )
    say(f"making {venv}")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)


def fill(venv: Path, torch_index: str) -> None:
    """Install this checkout (editable) with its test tools, bound to the tested versions and to the torch there is."""
    python = venv / "bin" / "python"
    if not python.exists():
        create(venv)
    found = probe(python, str(venv))
    if "pip" not in found:
        raise SetupError(
            f"{venv} has no pip: {python} -m ensurepip brings it, or remove that folder and run make again"
        )
    if "torch" in found:
        check_torch(found["torch"], str(venv))
    constraints, notes = constrain((ROOT / "constraints.txt").read_text(encoding="utf-8"), found)
    for note in notes:
        say(note)
    bound = venv / "fastgan-constraints.txt"
    bound.write_text(constraints, encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-c", str(bound)]
    command += ["--extra-index-url", torch_index] if torch_index else []
    subprocess.run([*command, "-e", f"{ROOT}[test]"], check=True)


def check() -> None:
    """Whether this very Python will do without any set-up."""
    check_python(sys.version_info[:2], sys.executable, NEWER)
    torch = probe(Path(sys.executable), sys.executable).get("torch")
    if torch is None:
        raise SetupError(f"{sys.executable} has no torch, and INSTALL=0 installs nothing: run make without INSTALL=0")
    check_torch(torch, sys.executable)


def say(text: str) -> None:
    """A line in the name of the project."""
    print(f"fastgan: {text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something that the user can mend, else what pip or venv ended with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only look whether this Python will do as it is")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="the folder to fill")
    parser.add_argument("--torch-index", default="", help="one more package index, where another build of torch is")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            check()
        else:
            fill(options.venv, options.torch_index)
    except SetupError as error:
        print(f"fastgan: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"fastgan: {' '.join(error.cmd[1:4])} ended with {error.returncode}, see above", file=sys.stderr)
        return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
