"""``fastgan export``: which format goes where; the files themselves are tests/train/test_export.py's affair."""

import pytest
import torch

pytest.importorskip("tyro")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from fastgan.cli import main

    folder = tmp_path_factory.mktemp("runs") / "r"
    tiny = ["--steps", "2", "--set", "generator.hidden=[8]", "--set", "z_dim=4", "--device", "cpu", "--out"]
    assert main(["train", "gan-digits", *tiny, str(folder)]) == 0
    return folder


def export(*arguments):
    from fastgan.cli import main

    return main(["export", *map(str, arguments)])


def test_weights_beside_the_run_make_the_same_samples(run, capsys):
    from fastgan.train.generate import load

    assert export(run) == 0
    said = capsys.readouterr().out
    file = run / "generator.safetensors"
    for part in (str(file), "step 2", "raw weights", "normal z (batch, 4)", "(batch, 1, 8, 8)", "difference"):
        assert part in said
    z = torch.randn(3, 4)
    assert torch.equal(load(file)(z), load(run)(z))
    former = file.read_bytes()
    assert export(file, "--out", file) == 0  # what was exported is exported again
    assert file.read_bytes() == former


@pytest.mark.parametrize(
    "out, format, name",
    [
        ("folder/", None, "folder/generator.safetensors"),
        ("", "torch", "generator.pt2"),
        ("a.v2.pt2", None, "a.v2.pt2"),
        ("a.PT2", "torch", "a.PT2"),
        ("a.onnx", None, "a.onnx"),
        ("a.safetensors", "onnx", None),
        ("a.bin", None, None),
        ("a", "torch", None),
        ("a.onnx", "onx", None),
    ],
)
def test_where_it_goes(run, tmp_path, monkeypatch, capsys, out, format, name):
    from fastgan.cli import export as verb
    from fastgan.train.export import Exported

    calls = []
    monkeypatch.setattr(verb, "write", lambda *how: calls.append(how[1:]) or Exported("file", None))
    asked = [] if format is None else ["--format", format]
    code = export(run, "--out", f"{tmp_path}/{out}", *asked)
    if name is None:
        assert code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert calls == []
        return
    kind = {"safetensors": "safetensors", "pt2": "torch", "onnx": "onnx"}[name.rsplit(".")[-1].lower()]
    assert (code, calls) == (0, [(tmp_path / name, kind, None)])
    assert "not checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--opset", "18"], "opset"),
        (["--opset", "0", "--format", "onnx"], "--opset"),
        (["--opset", "new", "--format", "onnx"], "--opset"),
        (["--which", "best"], "weights"),
        (["--format", "onnx", "--opset", "2"], "--opset 2"),
    ],
)
def test_mistakes_leave_nothing(run, tmp_path, capsys, arguments, word):
    pytest.importorskip("onnxscript")
    assert export(run, "--out", tmp_path, *arguments) == 2
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_stays_as_it_is(run, monkeypatch):
    """What is made of it goes into the run's folder, not over its own files."""
    step = run / "checkpoints" / "step-00000002"
    former = {path.name: path.read_bytes() for path in step.iterdir()}
    (run / "generator.safetensors").unlink(missing_ok=True)
    assert export(step) == 0 and (run / "generator.safetensors").is_file()
    assert {path.name: path.read_bytes() for path in step.iterdir()} == former
    (run / "generator.safetensors").unlink()
    monkeypatch.chdir(run)
    assert export("checkpoints/step-00000002") == 0 and (run / "generator.safetensors").is_file()


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert export(tmp_path) == 2
    assert "not a run" in capsys.readouterr().err
    assert export(tmp_path / "g.safetensors") == 2
    assert "no such file" in capsys.readouterr().err
