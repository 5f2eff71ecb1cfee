"""Exported generators: they make the same samples at any batch size, ask for nothing of fastgan, and are whole."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgan.errors import UserError
from fastgan.nn import Chain
from fastgan.ops.backend import backend
from fastgan.presets import from_dict
from fastgan.train import build, export
from fastgan.train.export import write
from fastgan.train.generate import HEADER, Generator, load

SYSTEMS = {
    "mlp": ((1, 8, 8), {"z_dim": 6, "generator": {"hidden": [16, 12]}}),
    "dcgan": ((3, 16, 16), {"z_dim": 5, "latent": "uniform", "generator": {"name": "dcgan", "width": 4}}),
    "points": ((2,), {"z_dim": 2, "generator": {"hidden": [9], "activation": "relu", "output": "none"}}),
}
HERE = str(Path(export.__file__).parents[1]).encode()  # a folder of this machine, which is nobody else's affair
CPU = torch.device("cpu")


class Conditional(nn.Module):
    """Samples by class: labels shift z."""

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.shift = nn.Embedding(3, 4)
        self.layers = Chain(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, z, labels):
        return self.layers(z + self.shift(labels))


def built(name):
    """A generator in evaluation mode whose running statistics are not those of a fresh norm."""
    torch.manual_seed(0)
    if name == "conditional":
        config, shape, module = from_dict({"z_dim": 4}), (2,), Conditional()
        module(torch.randn(64, 4) * 3, torch.randint(3, (64,)))
    else:
        shape, keys = SYSTEMS[name]
        config = from_dict(keys)
        module = build.networks(config, shape)[0]
        module(torch.randn(64, config.z_dim) * 3)
    return Generator(module.eval(), config, 7, CPU, shape, "raw")


def inputs(generator, n):
    z = torch.randn(n, generator.config.z_dim)
    return (z, torch.randint(generator.classes, (n,))) if generator.classes else (z,)


def close(made, wanted):
    torch.testing.assert_close(torch.as_tensor(made), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "dcgan", "conditional"])
def test_onnx_equals_the_generator_in_onnxruntime(name, tmp_path):
    pytest.importorskip("onnxscript")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    generator, file = built(name), tmp_path / "g.onnx"
    exported = write(generator, file, "onnx")
    assert exported.difference <= 1e-5
    assert list(tmp_path.iterdir()) == [file]  # weights are in it
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    assert names == (["z", "labels"] if generator.classes else ["z"])
    for n in (1, 3, 64):
        fed = inputs(generator, n)
        (made,) = session.run(["samples"], {key: value.numpy() for key, value in zip(names, fed, strict=True)})
        close(made, generator.make(*fed))
    model = onnx.load(file)
    assert {node.domain for node in model.graph.node} == {""}
    assert HERE not in file.read_bytes()
    (told,) = (json.loads(entry.value) for entry in model.metadata_props if entry.key == HEADER)
    assert told == generator.header()


@pytest.mark.parametrize("name", ["mlp", "dcgan", "conditional"])
def test_a_program_asks_for_pytorch_alone_and_is_read_without_unpickling(name, tmp_path, monkeypatch):
    generator, file = built(name), tmp_path / "g.pt2"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", None)  # the check reads the file again
        assert write(generator, file, "torch").difference <= 1e-6
    assert HERE not in file.read_bytes()
    told = {HEADER: ""}
    program = torch.export.load(file, extra_files=told)
    assert {node.target.namespace for node in program.graph.nodes if node.op == "call_function"} == {"aten"}
    for n in (1, 3, 64):
        fed = inputs(generator, n)
        close(program.module()(*fed), generator.make(*fed))
    assert json.loads(told[HEADER]) == generator.header()


@pytest.mark.parametrize("name", SYSTEMS)
def test_safetensors_hold_the_network_too(name, tmp_path):
    pytest.importorskip("safetensors")
    generator, file = built(name), tmp_path / "g.safetensors"
    assert write(generator, file, "safetensors").difference == 0
    fed = inputs(generator, 9)
    assert torch.equal(load(file)(*fed), generator.make(*fed))


def test_it_is_traced_by_the_reference_whatever_backend_is_set():
    generator = built("mlp")
    with backend("triton"):
        program = export.program(generator)
    assert {node.target.namespace for node in program.graph.nodes if node.op == "call_function"} == {"aten"}


def test_the_opset_is_the_one_asked_for_or_nothing_is_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # then it is called unchecked
    generator = built("points")
    assert write(generator, tmp_path / "g.onnx", "onnx", opset=18) == export.Exported("ONNX model (opset 18)", None)
    former = (tmp_path / "g.onnx").read_bytes()
    assert [entry.version for entry in onnx.load(tmp_path / "g.onnx").opset_import if not entry.domain] == [18]
    with pytest.raises(UserError, match="--opset 1:"):
        write(generator, tmp_path / "g.onnx", "onnx", opset=1)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [former]


@pytest.mark.parametrize(
    "wrong, word",
    [
        (lambda made: made + 2e-5, "differ"),
        (lambda made: made * float("nan"), "differ"),
        (lambda made: made[:1], "samples"),
    ],
)
def test_a_file_that_makes_other_samples_is_not_kept(tmp_path, monkeypatch, wrong, word):
    pytest.importorskip("safetensors")
    generator, file = built("mlp"), tmp_path / "g.safetensors"
    file.write_bytes(b"the former")
    whole = export._write_safetensors

    def broken(generator, path):
        what, rerun = whole(generator, path)
        return what, lambda inputs: wrong(rerun(inputs))

    monkeypatch.setattr(export, "_write_safetensors", broken)
    with pytest.raises(UserError, match=word):
        write(generator, file, "safetensors")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the former"]


def test_what_is_missing_or_wrong_is_named(tmp_path, monkeypatch):
    generator = built("points")
    with pytest.raises(UserError, match="did you mean 'onnx'"):
        write(generator, tmp_path / "g", "onx")
    with pytest.raises(UserError, match="opset"):
        write(generator, tmp_path / "g.pt2", "torch", opset=18)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"fastgan\[export\]"):
        write(generator, tmp_path / "new/g.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []
