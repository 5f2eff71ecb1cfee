"""The command line: one file per verb.

Exit codes: 0 done, 1 a claim of the theory fails or another process of the job has ended, 2 the user's mistake,
3 non-finite, 130 / 138 / 143 saved after SIGINT / SIGUSR1 / SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from fastgan import __version__
from fastgan.cli.output import leave, plain_warnings, say
from fastgan.errors import LostPeersError, NonFiniteError, UserError, require, unknown

VERBS = {
    "train": "train a preset or a configuration file; without one, list the presets",
    "sample": "draw new samples from a finished or running training",
    "evaluate": "measure what a trained generator is worth: modes, Parzen, FID, KID, ...; --list names them",
    "export": "write a trained generator as safetensors, a torch.export program or ONNX",
    "theory": "check the theory of GANs by numbers, print each claim and draw it",
    "profile": "say where the time of a training step goes, or what a kernel was compiled to",
    "doctor": "show GPU, driver, libraries, and which backend each op takes here",
    "bench": "run a benchmark suite (all: the lot); report, compare, predict; without one, list them",
}

PARSED_BY_TYRO = (
    "train",
    "sample",
    "evaluate",
    "export",
    "theory",
    "profile",
)  # doctor and bench run where it is missing


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fastgan VERB ...`` and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(_overview())
        return 0
    if arguments[0] == "--version":
        say(f"fastgan {__version__}")
        return 0
    try:
        with plain_warnings():
            return _run(arguments[0], arguments[1:])
    except UserError as error:
        return _complain(str(error), 2)
    except NonFiniteError as error:
        return _complain(str(error), 3)
    except LostPeersError as error:
        return _complain(str(error), 1, alone=True)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left: fastgan bench | head
        leave()
        return 0
    except OSError as error:  # a full disk, a folder that is not ours
        return _complain(f"{error.filename or 'the disk'}: {error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _complain("out of memory: set a smaller batch_size, smaller networks, or fewer samples at a time", 2)


def _complain(text: str, code: int, alone: bool = False) -> int:
    """Say what is wrong; of several processes one speaks for all that would say the same, unless each is ``alone``."""
    if alone or "WORLD_SIZE" not in os.environ:
        _tell(text)
    else:
        from fastgan.train.joining import say_once

        say_once(text, _tell)
    return code


def _tell(text: str) -> None:
    print(f"fastgan: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


def _out_of_memory(error: Exception) -> bool:
    """CUDA's and the host's allocator say so in words; PyTorch has a class of its own for the first only."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _run(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        raise unknown("command", verb, VERBS)
    if verb in PARSED_BY_TYRO:
        require("tyro", why=f"fastgan {verb}")
    code: int = importlib.import_module(f"fastgan.cli.{verb}").main(arguments)
    return code


def _overview() -> str:
    lines = ["usage: fastgan COMMAND [options]     (fastgan COMMAND --help says more)", ""]
    lines += [f"  {name:8} {what}" for name, what in VERBS.items()]
    return "\n".join(lines)
