"""A trained generator as a file for elsewhere: safetensors, a torch.export program, ONNX. Checked before it is there.

A file is written beside its name, run against the module on latents of other batch sizes than it was traced with, and
given its name only where both agree. Files carry a JSON header (``Generator.header``) under the key HEADER: the
safetensors' metadata, an extra file of the .pt2 archive, the metadata of the ONNX model.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastgan.errors import UserError, require, unknown
from fastgan.ops.backend import backend
from fastgan.train.files import replacing
from fastgan.train.generate import EXPORTED, HEADER, Generator, read_exported
from fastgan.train.latents import Layout

SUFFIXES = {"safetensors": EXPORTED, "torch": ".pt2", "onnx": ".onnx"}
PACKAGES = {"safetensors": ["safetensors.torch"], "torch": [], "onnx": ["onnx", "onnxscript"]}
TRACED = 2  # samples: PyTorch takes a batch of 1 for a size that never changes
TRIED = (1, 5)
TOLERANCE = 1e-5  # of the largest sample, and of 1
INPUTS, OUTPUT = ("z", "labels"), "samples"

Inputs = tuple[Tensor, ...]
Rerun = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written, and the largest difference between file and module; None where nothing here runs the file."""

    what: str
    difference: float | None


def write(generator: Generator, path: Path, format: str, opset: int | None = None) -> Exported:
    """Write ``generator``, which is on the CPU, to ``path``, whole or not at all.

    Args:
        generator: what ``load_generator(run, "cpu")`` returns. It is traced under the reference backend: the file
            holds PyTorch's own operators or ONNX's, and asks for nothing of fastgan.
        path: the file; an existing one is replaced.
        format: ``safetensors``: the weights, and how to build the network around them (``fastgan.load`` does);
            ``torch``: a torch.export program; ``onnx``: an ONNX model. Programs take ``z (batch, z_dim)`` in fp32 (and
            ``labels (batch,)`` in int64) and return ``samples (batch, *sample_shape)``, of any batch size.
        opset: the version of ONNX's operators; None leaves it to PyTorch.

    Raises:
        UserError: for an unknown format, an opset for another format or one that cannot be had, a missing package, a
            file that cannot be written, and where file and module differ by more than TOLERANCE.
    """
    if format not in SUFFIXES:
        raise unknown("format", format, SUFFIXES)
    if opset is not None and format != "onnx":
        raise UserError(f"an opset is ONNX's, and the format is {format}: leave --opset out, or give --format onnx")
    if format != "safetensors" and getattr(generator.module, "random", False):
        raise UserError("the generator draws random numbers of its own, and no program does: give --format safetensors")
    for package in PACKAGES[format]:
        require(package, extra="export" if format == "onnx" else None, why=f"exporting to {format}")
    try:
        rerun: Rerun | None
        with replacing(path, again="export again") as temporary:
            if format == "safetensors":
                what, rerun = _write_safetensors(generator, temporary)
            elif format == "torch":
                what, rerun = _write_program(generator, temporary)
            else:
                what, rerun = _write_onnx(generator, temporary, opset)
            difference = _difference(generator, rerun, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; give another --out") from error
    return Exported(what, difference)


def program(generator: Generator) -> ExportedProgram:
    """The generator in evaluation mode as a program of PyTorch's own operators, for batches of any size."""
    batch = torch.export.Dim("batch", min=1)
    inputs = _inputs(generator, TRACED)
    with backend("reference"), torch.no_grad(), _quiet():
        exported = torch.export.export(generator.module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine, and goes into the files
    return exported


def _write_safetensors(generator: Generator, path: Path) -> tuple[str, Rerun]:
    safetensors = importlib.import_module("safetensors.torch")
    # clones: tied weights share storage, which the format refuses
    plain = {key: value.detach().contiguous().clone() for key, value in generator.module.state_dict().items()}
    path.write_bytes(safetensors.save(plain, {HEADER: json.dumps(generator.header())}))
    again = read_exported(path, torch.device("cpu"), generator.which)
    return "safetensors", lambda inputs: again.make(*inputs)


def _write_program(generator: Generator, path: Path) -> tuple[str, Rerun]:
    exported = program(generator)
    exported.example_inputs = None  # they would be pickled, the only thing in the file that is
    with path.open("wb") as file, _quiet():
        torch.export.save(exported, file, extra_files={HEADER: json.dumps(generator.header())})
    with path.open("rb") as file, _quiet():
        module = torch.export.load(file).module()
    return "torch.export program", lambda inputs: torch.as_tensor(module(*inputs))


def _write_onnx(generator: Generator, path: Path, opset: int | None) -> tuple[str, Rerun | None]:
    exported, inputs = program(generator), _inputs(generator, TRACED)
    names = INPUTS[: len(inputs)]
    with backend("reference"), _quiet():
        converted: Any = torch.onnx.export(
            exported,
            inputs,
            input_names=names,
            output_names=[OUTPUT],
            dynamic_shapes=tuple({0: "batch"} for _ in inputs),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    written = converted.model.opset_imports[""]
    if opset not in (None, written):  # PyTorch would leave it at that with a warning
        raise UserError(f"--opset {opset}: this network cannot be written in it (in {written} it can): leave it out")
    converted.model.metadata_props[HEADER] = json.dumps(generator.header())
    converted.save(path, external_data=False)
    return f"ONNX model (opset {written})", _runtime(path)


def _runtime(path: Path) -> Rerun | None:
    """What runs an ONNX model here; None where onnxruntime is not installed."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    try:
        session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes, derived from no common one
        reason = " ".join(str(error).split())
        raise UserError(
            f"onnxruntime {runtime.__version__} does not take the model ({reason}): try --opset 18"
        ) from error

    def rerun(inputs: Inputs) -> Tensor:
        fed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)}
        return torch.from_numpy(np.asarray(session.run([OUTPUT], fed)[0]))

    return rerun


@torch.no_grad()
def _difference(generator: Generator, rerun: Rerun | None, path: Path) -> float | None:
    """The largest difference between what the file and the module make. Raises UserError where it is too large."""
    if rerun is None:
        return None
    largest = 0.0
    for n in TRIED:
        inputs = _inputs(generator, n)
        wanted, made = generator.make(*inputs), rerun(inputs)
        if made.shape != wanted.shape:
            raise UserError(
                f"{path} is not written: it would make samples {tuple(made.shape)}, not {tuple(wanted.shape)}"
            )
        difference = float((made - wanted).abs().max() / wanted.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:  # NaN is not either
            raise UserError(f"{path} is not written: its samples would differ from the generator's by {difference:.1e}")
        largest = max(largest, difference)
    return largest


def _inputs(generator: Generator, n: int) -> Inputs:
    """Latents, and labels where the generator takes them, for ``n`` samples."""
    layout, random = Layout(n), torch.Generator().manual_seed(n)
    z = layout.latents(generator.config.latent, generator.config.z_dim, random)
    labels = layout.labels(generator.classes, random)
    return (z,) if labels is None else (z, labels)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's exporters from writing of packages that are not needed and of their own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
