"""Triton's launch up to its launcher in C and no further: kernels are compiled, nothing runs, no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from torch import Tensor

DEVICE_FACTS = {"max_shared_mem": 232_448}


class Deaf:
    """A driver of GPUs like an H100 whose launcher in C does nothing."""

    def __init__(self) -> None:
        self.device = 0  # the current one
        self.holder = 0  # the one that every tensor is on
        self.stream = 77
        self.listen: Callable[..., object] = lambda *words: None  # is called in place of the launcher
        self.utils = SimpleNamespace(
            launch=lambda *words: self.listen(*words),
            load_binary=lambda *binary: ("module", 4242 + self.device, 32, 0, 1024),
            get_device_properties=lambda device: DEVICE_FACTS,
            build_signature_metadata=lambda signature: bytes(len(signature)),
        )

    def get_current_device(self) -> int:
        """Return the number of the current device."""
        return self.device

    def get_current_stream(self, device: int) -> int:
        """Return a handle, another one for each device."""
        return self.stream + device

    def get_current_target(self) -> Any:
        """Return what is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, src: Any, metadata: Any) -> Any:
        """Return Triton's own launcher, its half in Python."""
        from triton.backends.nvidia.driver import CudaLauncher

        return CudaLauncher(src, metadata)

    def told(self, call: Callable[[], object]) -> list[object]:
        """Return what a launch hands to C, tensors as addresses; nothing for hooks and what they would be told."""
        heard: list[object] = []
        with patch.object(self, "listen", lambda *words: heard.extend(words)):
            call()
        return [plain(word) for word in heard]


def plain(word: Any) -> Any:
    """Return a word of a call so that it can be compared with that of another call."""
    if isinstance(word, (tuple, list)):
        return [plain(part) for part in word]
    if isinstance(word, Tensor):
        return word.data_ptr()
    return word if isinstance(word, (int, float, str, bytes)) else None


@contextmanager
def unlaunched(*kernels: Any) -> Iterator[Deaf]:
    """Let tensors of the CPU pass for tensors of a GPU, and launches of these kernels end before the launcher in C."""
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import driver

    from fastgan.kernels import launch, replay

    deaf = Deaf()
    with ExitStack() as stack:
        for owner, name, value in (
            (
                nvidia,
                "compile_module_from_src",
                lambda **source: SimpleNamespace(launch=deaf.utils.launch),
            ),
            (nvidia, "library_dirs", lambda: []),
            (nvidia, "PyKernelArg", lambda **fields: tuple(fields)),
            (driver, "_active", deaf),
            (Tensor, "get_device", lambda tensor: deaf.holder),
            (launch, "_current_device", deaf.get_current_device),
            (replay, "current_stream", deaf.get_current_stream),
            (launch, "_replays", {}),
            (launch, "_unlike", set()),
            *((kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder)) for kernel in kernels),
        ):
            stack.enter_context(patch.object(owner, name, value, create=True))
        yield deaf
