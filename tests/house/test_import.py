"""`import fastgan` is cheap and asks for torch and numpy only; the rest is asked for where it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAZY = ("triton", "tyro", "tqdm", "yaml", "PIL", "safetensors", "matplotlib", "pandas", "scipy", "jsonschema")

BLOCK = f"""
import sys
import torch, numpy
for name in {LAZY}:
    sys.modules[name] = None  # from here on, importing it is an ImportError
"""


def answer(code: str) -> Any:
    """What a fresh Python says, as JSON, when it runs this code against the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_brings_nothing_but_torch_and_numpy() -> None:
    code = "import sys, json, torch, numpy; before = set(sys.modules); import fastgan; new = set(sys.modules) - before"
    new = answer(f"{code}; print(json.dumps(sorted({{name.split('.')[0] for name in new}})))")
    assert set(new) - sys.stdlib_module_names == {"fastgan"}


def test_import_costs_at_most_15_percent_of_torch() -> None:
    code = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import fastgan
print(json.dumps([middle - start, time.perf_counter() - middle]))
"""
    torch_seconds, own_seconds = zip(*(answer(code) for _ in range(3)), strict=True)
    assert min(own_seconds) <= 0.15 * min(torch_seconds)


def test_every_module_imports_without_the_lazy_packages() -> None:
    """Excepted: kernel files, which are Triton's, and verbs, whose options are tyro's."""
    code = """
import importlib, json, pkgutil
import fastgan
failed = {}
for module in pkgutil.walk_packages(fastgan.__path__, "fastgan."):
    if not module.name.startswith(("fastgan.kernels.", "fastgan.cli.")) and not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed[module.name] = str(error)
print(json.dumps(failed))
"""
    assert answer(BLOCK + code) == {}


def test_a_layer_works_without_triton() -> None:
    code = """
import json, torch, fastgan
layer = fastgan.nn.LinearAct(5, 3)
y = layer(torch.randn(4, 5))
y.sum().backward()
print(json.dumps([list(y.shape), bool(layer.weight.grad.abs().sum() > 0)]))
"""
    assert answer(BLOCK + code) == [[4, 3], True]
