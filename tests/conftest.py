"""What every test stands on: which tests run in which process, how many examples, and a home that is not the user's."""

from __future__ import annotations

import os
import random
import shutil
import site
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest
import torch

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
FULL = os.environ.get("FASTGAN_TEST_ALL") == "1"
WORKER = "PYTEST_XDIST_WORKER" in os.environ
SPECIAL = (b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"PK\x01\x02", b"PK\x05\x06", b"\x1f\x8b", b"\n", b"'O'", b"-1")

hypothesis.settings.register_profile("slice", max_examples=25, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("interpreted", parent=hypothesis.settings.get_profile("slice"), max_examples=10)
hypothesis.settings.register_profile(  # an interpreted kernel takes about a second an example
    "full", parent=hypothesis.settings.get_profile("slice"), max_examples=200 if INTERPRET else 1000
)


def gpu_problem() -> str | None:
    """Why the tests marked ``gpu`` cannot run here; None where they can."""
    if not torch.cuda.is_available():
        return f"no CUDA device that torch {torch.__version__} can use"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    return None


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addoption("--slice", type=int, metavar="N", help="of a test with many cases run one in N, always the same")
    parser.addoption("--require-gpu", action="store_true", help="end with exit code 2 where no usable GPU is")
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds that a test may take: without pytest-timeout nobody watches them")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("full" if FULL else "interpreted" if INTERPRET else "slice")
    if config.getoption("--require-gpu") and (problem := gpu_problem()):
        pytest.exit(f"{problem}: these tests need an NVIDIA GPU and a CUDA build of torch", returncode=2)
    if WORKER:
        torch.set_num_threads(1)
    else:
        move_house(config)


def move_house(config: pytest.Config) -> None:
    """Give the run, its workers and every process that a test starts a home of their own, removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="fastgan-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())  # packages that were found through HOME stay found
    os.environ["HOME"] = str(home)
    os.environ["FASTGAN_CACHE"] = str(home / "cache")
    kept = Path(config.rootpath) / ".pytest_cache" / "kept"  # what is keyed by its content may outlive the run
    for variable in ("TRITON_CACHE_DIR", "MPLCONFIGDIR"):
        (kept / variable.lower()).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(kept / variable.lower())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INTERPRET:  # decorated kernels are interpreted in this process and cannot be compiled
        keep = [item for item in items if item.get_closest_marker("interpret")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(keep)])
        items[:] = keep
    if share := config.getoption("--slice"):
        keep = sliced(items, share)
        config.hook.pytest_deselected(items=[item for item in items if item not in keep])
        items[:] = [item for item in items if item in keep]
    reasons = {}
    if not INTERPRET:
        reasons["interpret"] = "runs a Triton kernel on the CPU: needs TRITON_INTERPRET=1 from the start of the process"
    if not FULL:
        reasons["full"] = "a large count: make test-all runs it (FASTGAN_TEST_ALL=1)"
    if marked(items, "gpu") and (problem := gpu_problem()):
        reasons["gpu"] = problem
    for name, reason in reasons.items():
        for item in marked(items, name):
            item.add_marker(pytest.mark.skip(reason=reason))


def sliced(items: Iterable[pytest.Item], share: int) -> set[pytest.Item]:
    """One in ``share`` of each test's cases, rounded up: which ones follows from the test's name."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return {
        case for name, cases in tests.items() for case in random.Random(name).sample(cases, -(-len(cases) // share))
    }


def marked(items: Iterable[pytest.Item], name: str) -> list[pytest.Item]:
    return [item for item in items if item.get_closest_marker(name)]


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether this run takes the full counts: ``for seed in range(100 if full else 3)``."""
    return FULL


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the kernels' matrix products by name."""
    from fastgan.kernels import conv, conv_bwd_input, conv_bwd_weight, linear, linear_bwd_input, linear_bwd_weight

    counts: Counter[str] = Counter()

    def counting(name: str, run: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **more: object) -> object:
            counts[name] += 1
            return run(*arguments, **more)

        return counted

    for module, name in (
        (linear, "linear_fwd"),
        (linear_bwd_input, "linear_bwd_input"),
        (linear_bwd_weight, "linear_bwd_weight"),
        (conv, "conv_fwd"),
        (conv_bwd_input, "conv_bwd_input"),
        (conv_bwd_weight, "conv_bwd_weight"),
    ):
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return counts


@pytest.fixture(scope="session")
def mutate() -> Callable[..., bytes]:
    """A function that damages bytes: flips, overwrites, inserts, removes, cuts short; all by the generator's will.

    A third argument is what it may write: bytes that mean something to the format.
    """
    return mutated


def mutated(content: bytes, rng: random.Random, special: Sequence[bytes] = SPECIAL) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randrange(1, 12))
        kind = rng.randrange(7)
        if kind <= 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:end] = rng.randbytes(end - at)
        elif kind == 3:
            words = rng.choice(special)
            data[at : at + len(words)] = words
        elif kind == 4:
            del data[at:end]
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.randrange(1, 12))
        else:
            del data[at:]
    return bytes(data)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one: a disk takes milliseconds to replace a file."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fastgan-", dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
