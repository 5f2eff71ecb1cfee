"""The command line as a user calls it."""

import pytest


@pytest.fixture
def fastgan(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder; returns (exit code, stdout, stderr)."""
    pytest.importorskip("tyro")
    from fastgan.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
