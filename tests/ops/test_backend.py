"""Who computes what: the rules of the choice, the switch, and the one warning."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

import fastgan
from fastgan.errors import UserError
from fastgan.ops import backend, extension, linear_act

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OP = "linear_act"


@pytest.fixture(autouse=True)
def _as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another one set, chose or was warned of."""
    monkeypatch.setattr(backend, "_requested", "auto")
    monkeypatch.setattr(backend, "_choices", {})
    monkeypatch.setattr(backend, "_warned", set())


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A GPU that is not there; the test may change its capability and Triton's version."""
    facts: dict[str, object] = {"capability": (9, 0), "triton": "3.7.1"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: facts["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test card")
    monkeypatch.setattr(backend, "_triton", lambda: facts["triton"])
    return facts


def test_auto_takes_the_reference_on_the_cpu_and_the_kernels_on_a_gpu(card: dict[str, object]) -> None:
    assert backend.choose(OP, CPU, torch.float32).backend == "reference"
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert backend.choose(OP, GPU, dtype).backend == "triton"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # float64 is by design: nothing to warn of
        assert backend.choose(OP, GPU, torch.float64).backend == "reference"
    with fastgan.backend("reference"):
        assert backend.choose(OP, GPU, torch.float32).backend == "reference"


@pytest.mark.parametrize(
    "fact, value, words", [("capability", (7, 5), "compute capability 8.0"), ("triton", None, "pip install 'triton")]
)
def test_a_gpu_that_cannot_is_told_once(card: dict[str, object], fact: str, value: object, words: str) -> None:
    card[fact] = value
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for dtype in (torch.float32, torch.float16, torch.float32):
            assert backend.choose(OP, GPU, dtype).backend == "reference"
    assert [warning.category for warning in seen] == [RuntimeWarning]
    assert words in str(seen[0].message)
    with fastgan.backend("triton"), pytest.raises(UserError, match=words):
        backend.choose(OP, GPU, torch.float32)


def test_switch_sets_at_once_restores_and_nests() -> None:
    fastgan.backend("reference")
    assert backend.current_backend() == "reference"
    with fastgan.backend("triton"):
        assert backend.current_backend() == "triton"
        with pytest.raises(RuntimeError), fastgan.backend("auto"):  # also on the way out of an error
            raise RuntimeError
        assert backend.current_backend() == "triton"
    assert backend.current_backend() == "reference"


def test_what_cannot_be_taken_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean 'triton'"):
        fastgan.backend("tritn")
    monkeypatch.setattr(extension, "absent", lambda: "there is no nvcc")
    with pytest.raises(UserError, match="no CUDA C\\+\\+ extension: there is no nvcc; use 'triton' or 'auto'"):
        fastgan.backend("cuda")
    assert backend.current_backend() == "auto"
    with fastgan.backend("triton"), pytest.raises(UserError, match="TRITON_INTERPRET=1"):
        linear_act(torch.ones(2, 3), torch.ones(4, 3))


@pytest.mark.parametrize(
    "value, words",
    [("reference", "reference"), ("tritn", "unknown backend 'tritn'"), ("triton", "triton")],
)
def test_environment_names_the_backend(value: str, words: str) -> None:
    """A wrong name does not break the import, only the first use."""
    program = "import fastgan, fastgan.ops\nprint(fastgan.ops.backend.current_backend())"
    environment = {**os.environ, "FASTGAN_BACKEND": value}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert words in (done.stdout + done.stderr).strip().splitlines()[-1]


def test_cuda_takes_what_the_extension_has_and_warns_once_of_the_rest(
    card: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "absent", lambda: None)
    monkeypatch.setattr(extension, "runs_on", lambda device: device.type == "cuda")
    with fastgan.backend("cuda"), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        taken = [backend.choose(OP, GPU, dtype).backend for dtype in (torch.bfloat16, torch.float16)]
        rest = [backend.choose(op, GPU, torch.float32).backend for op in (OP, "gan_loss", "maxout")]
        assert backend.choose(OP, GPU, torch.float64).backend == "reference"
        assert backend.by_extension(OP, torch.empty(4, 4)) is False, "on the CPU it goes as under auto"
    assert (taken, rest) == (["cuda", "cuda"], ["triton"] * 3)
    assert [str(warning.message) for warning in seen] == [f"backend 'cuda': {extension.LACKS}"]
    card["capability"] = (7, 5)
    backend._choices.clear()
    with fastgan.backend("cuda"), pytest.warns(RuntimeWarning, match="compute capability 8.0"):
        assert backend.choose(OP, GPU, torch.bfloat16).backend == "reference"


def test_explain_lists_every_op_without_a_warning_or_an_error(card: dict[str, object]) -> None:
    card["capability"] = (7, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choices = backend.explain(GPU)
    choice = next(choice for choice in choices if choice.op == "linear_act")
    assert (choice.op, choice.backend) == (OP, "reference")
    assert "Test card" in choice.why
    with fastgan.backend("triton"):
        assert {choice.backend for choice in backend.explain(CPU)} == {"none"}


def test_fake_and_meta_tensors_need_no_gpu() -> None:
    for device in (GPU, torch.device("meta")):
        for name in ("auto", "triton"):
            with fastgan.backend(name):
                assert backend.choose(OP, device, torch.float32).backend == "reference"


def test_compiled_code_takes_the_choice_for_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler neither traces how the choice is made nor breaks the graph at its warning."""
    fallback = backend.Choice(OP, torch.float32, "reference", "of a test", fallback=True)
    monkeypatch.setattr(backend, "_choice", lambda *_: fallback)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x + len(backend.choose(OP, GPU, x.dtype).why), fullgraph=True, backend="eager")
    with pytest.warns(RuntimeWarning, match="plain PyTorch"):
        assert compiled(torch.zeros(1)).item() == len("of a test")


@pytest.mark.interpret
def test_the_interpreter_makes_cpu_tensors_eligible() -> None:
    with fastgan.backend("triton"):
        assert backend.choose(OP, CPU, torch.float32).backend == "triton"
        assert backend.choose(OP, CPU, torch.bfloat16).backend == "reference"  # interpreted bfloat16 is wrong
        assert backend.choose(OP, CPU, torch.float64).backend == "reference"
    assert backend.choose(OP, CPU, torch.float32).backend == "reference"  # auto never interprets


def test_a_switch_can_be_used_again() -> None:
    before = backend.current_backend()
    switch = fastgan.backend("reference")
    for _ in range(2):
        with switch:
            assert backend.current_backend() == "reference"
        assert backend.current_backend() == before
