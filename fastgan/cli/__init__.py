"""The command line: one file per verb. Exit codes: 0 done, 2 the user's mistake, 3 non-finite, 130 / 143 stopped."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from fastgan import __version__
from fastgan.errors import NonFiniteError, UserError, unknown

VERBS = {
    "train": "train a preset or a configuration file; without one, list the presets",
    "sample": "draw new samples from a finished or running training",
    "doctor": "show GPU, driver, libraries, and which backend each op takes here",
    "bench": "run a benchmark suite; without one, list the suites",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fastgan VERB ...`` and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"fastgan {__version__}")
        return 0
    try:
        return _run(arguments[0], arguments[1:])
    except UserError as error:
        print(f"fastgan: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"fastgan: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left: fastgan doctor | head
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a folder that is not ours
        print(f"fastgan: {error.filename or 'the disk'}: {error.strerror or error}", file=sys.stderr)
        return 2


def _run(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        raise unknown("command", verb, VERBS)
    code: int = importlib.import_module(f"fastgan.cli.{verb}").main(arguments)
    return code


def _overview() -> str:
    lines = ["usage: fastgan COMMAND [options]     (fastgan COMMAND --help says more)", ""]
    lines += [f"  {name:8} {what}" for name, what in VERBS.items()]
    return "\n".join(lines)
