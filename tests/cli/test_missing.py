"""A package that is not there costs the verbs that need it one line; the doctor answers all the same."""

import sys

from fastgan.cli import main


def test_a_missing_tyro_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    for verb in ("train", "sample", "export", "theory"):
        assert main([verb]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "'tyro'" in line
        assert "pip install" in line
    assert main(["doctor"]) == 0
    assert "backends" in capsys.readouterr().out
