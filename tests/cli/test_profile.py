"""``fastgan profile`` as a user runs it: what it prints it writes; a run is only read; mistakes are one line."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from PIL import Image

from fastgan.benchmarks import profile_rates, profile_step
from fastgan.benchmarks.command import Terminated
from fastgan.benchmarks.profile_rows import duration
from fastgan.benchmarks.record import Ceilings
from fastgan.benchmarks.table import number
from fastgan.train.lock import held

TINY = [
    *("--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]", "--set", "z_dim=4"),
    *("--set", "batch_size=16", "--set", "samples=4"),
]
FILES = ["profile.json", "timeline.png", "trace.json"]


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """Rates that take no time to measure."""
    known = Ceilings(copy_gbs=20.0, tflops={"float32": 0.1}, launch_us={"eager": 3.0})
    monkeypatch.setattr(profile_rates, "measure", lambda device, dtypes, before=None: known)


def refused(result, *words):
    code, out, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert (code, out, len(lines)) == (2, "", 1), result
    for word in words:
        assert word in lines[0]


def state(folder):
    return {
        path.relative_to(folder): (
            path.stat().st_mtime_ns,
            path.is_file() and hashlib.sha256(path.read_bytes()).digest(),
        )
        for path in sorted(folder.rglob("*"))
    }


def test_what_is_printed_is_what_is_written(fastgan, tmp_path):
    code, out, err = fastgan("profile", "gan-digits", "--device", "cpu", "--steps", 4, *TINY)
    assert (code, err) == (0, "")
    folder = tmp_path / "profile-gan-digits"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    body = json.loads((folder / "profile.json").read_text())
    assert (body["format"], body["preset"], body["steps"], body["batch_size"]) == (
        "fastgan-profile/1",
        "gan-digits",
        4,
        16,
    )
    assert body["step"]["time"] == "host"
    assert sum(row["us"] for row in body["phases"]) == pytest.approx(body["step"]["us"])
    for row in body["phases"]:
        shown = rf"(?m)^{row['phase']} +{re.escape(number(row['us']))} +{row['share']:.1%} "
        assert len(re.findall(shown, out)) >= 1, shown
    for row in body["layers"][:20]:
        name = f"{row['layer'] or row['phase']}"
        assert re.search(rf"(?m)^{re.escape(name)} +{row['what']} +{re.escape(number(row['us']))} ", out), row
    for line in body["losses"]:
        assert line in out
    assert f"step, host: {duration(body['step']['us'])} above" in out
    with Image.open(folder / "timeline.png") as picture:
        assert min(picture.size) > 400
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {"G.layers.0 LinearAct forward", "G.layers.0 LinearAct backward", "D's optimiser"} <= {
        event.get("name") for event in events
    }
    code, out, _ = fastgan("profile", "gan-digits", "--device", "cpu", "--steps", 3, "--json", *TINY)
    assert (code, json.loads(out)) == (0, json.loads((tmp_path / "profile-gan-digits-2" / "profile.json").read_text()))


def test_a_run_is_only_read(fastgan, tmp_path):
    assert fastgan("train", "gan-digits", "--device", "cpu", "--steps", 6, "--out", "run", *TINY)[0] == 0
    before = state(tmp_path / "run")
    with held(tmp_path / "run"):  # it trains meanwhile
        locked = state(tmp_path / "run")
        code, out, _ = fastgan("profile", "run", "--steps", 3, "--out", "here/there")
        assert state(tmp_path / "run") == locked
    assert code == 0
    assert "run from step 6: gan-digits, batch 16" in out
    assert sorted(path.name for path in (tmp_path / "here/there").iterdir()) == FILES
    body = json.loads((tmp_path / "here/there/profile.json").read_text())
    assert (body["first_step"], body["target"]) == (6, "run")
    assert {path: own for path, own in state(tmp_path / "run").items() if path in before} == before
    assert fastgan("profile", "run", "--steps", 3, "--set", "batch_size=8", "--out", "run/profile")[0] == 0
    assert json.loads((tmp_path / "run/profile/profile.json").read_text())["batch_size"] == 8
    refused(fastgan("profile", "run", "--set", "z_dim=5"), "another generator")
    refused(fastgan("profile", "run", "--out", "run"), "--out run", "not empty")


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143), (OSError(28, "full"), 2)])
def test_stopped_it_leaves_nothing(fastgan, tmp_path, monkeypatch, stop, code):
    steps = profile_step.counted

    def interrupted(*arguments):
        assert [path.suffix for path in tmp_path.iterdir()] == [".writing"]
        steps(*arguments)
        raise stop

    monkeypatch.setattr(profile_step, "counted", interrupted)
    assert fastgan("profile", "gan-digits", "--device", "cpu", "--steps", 3, "--out", "a/b", *TINY)[0] == code
    assert list(tmp_path.iterdir()) == []


def test_mistakes_of_steps_are_one_line(fastgan, tmp_path):
    refused(fastgan("profile"), "gan-digits", "--kernel")
    refused(fastgan("profile", "gan-digit"), "did you mean 'gan-digits'?")
    refused(fastgan("profile", "./gan-digits"), "there is no run at")
    refused(fastgan("profile", "none.yaml"), "none.yaml")
    refused(fastgan("profile", "gan-digits", "--steps", "0"), "--steps must be between 1 and 1000")
    refused(fastgan("profile", "gan-digits", "--steps", "many"), "--steps")
    refused(fastgan("profile", "gan-digits", "--device", "gpu"), "unknown device")
    refused(fastgan("profile", "gan-digits", "--set", "batchsize=3"), "did you mean 'batch_size'?")
    refused(fastgan("profile", "gan-digits", "--set", "batch_size"), "key=value")
    refused(fastgan("profile", "gan-digits", "--ptx"), "--ptx is of a kernel")
    refused(fastgan("profile", "gan-digits", "--stps", "3"), "--help")
    refused(fastgan("profile", "gan-digits", "--out", " "), "--out is empty")
    (tmp_path / "folder").mkdir()
    refused(fastgan("profile", "folder"), "not a run")
    (tmp_path / "file").touch()
    refused(fastgan("profile", "gan-digits", "--out", "file"), "--out file exists")
    refused(fastgan("profile", "gan-digits", "--out", "file/below"), "file/below")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_several_processes_are_refused(fastgan, monkeypatch):
    monkeypatch.setattr("fastgan.cli.profile.joining.alone", lambda: False)
    refused(fastgan("profile", "gan-digits"), "without torchrun")


def test_a_kernel_is_compiled_without_a_gpu(fastgan, tmp_path):
    pytest.importorskip("triton")
    asked = (
        "profile",
        "--kernel",
        "linear_fwd_kernel",
        "--arch",
        "sm_90",
        "--variant",
        "bfloat16 128x128x64",
        "--most",
        1,
    )
    code, out, err = fastgan(*asked)
    assert (code, err) == (0, "")
    code, text, _ = fastgan(*asked, "--json")
    body = json.loads(text)
    (form,) = body["forms"]
    assert (code, body["kernel"], body["arch"]) == (0, "linear_fwd_kernel", "sm_90")
    assert form["variant"] == "bfloat16 leaky_relu 128x128x64"
    assert (form["spill_bytes"], form["problems"], form["products"]) == (0, [], ["bf16"])
    assert form["occupancy"] == form["blocks_per_sm"] * form["warps"] / 64
    title, _, row = out.splitlines()[2:5]
    at = {
        name: title.index(name) + len(name)
        for name in ("registers", "shared B", "blocks/SM", "occupancy", "LDGSTS", "all")
    }
    cells = {name: row[:end].split()[-1] for name, end in at.items()}
    assert cells["registers"] == f"{form['registers']}/{form['max_registers']}"
    assert cells["shared B"] == str(form["shared_bytes"])
    assert cells["occupancy"] == f"{form['occupancy']:.0%}"
    assert cells["blocks/SM"] == str(form["blocks_per_sm"])
    if form["mix"]:
        assert cells["LDGSTS"] == str(form["mix"]["LDGSTS"])
        assert form["mix"]["HGMMA"] > 0
    assert f"1 of {body['left_out'] + 1} forms" in out
    assert ".target sm_90a" in fastgan(*asked, "--ptx")[1]
    if form["mix"]:
        code, said, _ = fastgan(*asked, "--sass", "--out", "code.sass")
        assert (code, said) == (0, "code.sass: linear_fwd_kernel [bfloat16 leaky_relu 128x128x64] sm_90, sass\n")
        assert len(re.findall(r"\bHGMMA\b", (tmp_path / "code.sass").read_text())) == form["mix"]["HGMMA"]
        refused(fastgan(*asked, "--sass", "--out", "code.sass"), "exists")


def test_mistakes_of_kernels_are_one_line(fastgan, monkeypatch):
    pytest.importorskip("triton")
    refused(fastgan("profile", "--kernel", "linear_fwd_kernl"), "did you mean 'linear_fwd_kernel'?")
    refused(
        fastgan("profile", "--kernel", "tick", "--arch", "sm_91"), "unknown architecture 'sm_91': did you mean 'sm_90'?"
    )
    refused(fastgan("profile", "--kernel", "tick", "--variant", "purple"), "'purple'", "they are called advances")
    refused(fastgan("profile", "--kernel", "tick", "--ptx", "--sass"), "one at a time")
    refused(fastgan("profile", "--kernel", "tick", "--out", "x"), "--ptx or --sass")
    refused(fastgan("profile", "--kernel", "tick", "--steps", 3), "--steps is of a training step")
    refused(fastgan("profile", "--kernel", "tick", "--most", 0), "--most")
    refused(fastgan("profile", "gan-digits", "--kernel", "tick"), "say what to profile")
    refused(fastgan("profile", "--kernel", "none.py"), "none.py")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    refused(fastgan("profile", "--kernel", "tick"), "TRITON_INTERPRET")
