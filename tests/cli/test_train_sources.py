"""``fastgan train`` on folders, shards and tables of one's own."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

Image = pytest.importorskip("PIL.Image")

TINY = [
    *("--steps", "4", "--batch-size", "8", "--device", "cpu", "--set", "z_dim=4", "--set", "log_every=2"),
    *("--set", "checkpoint_every=2", "--set", "samples=4"),
]
DCGAN = [*TINY, "--set", "generator.width=4", "--set", "discriminator.width=4", "--set", "image_size=16"]
MLP = [*TINY, "--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))


def write_images(folder: Path, count: int = 20) -> None:
    rng = np.random.default_rng(1)
    for at in range(count):
        path = folder / f"class {at % 2}" / f"{at}.{('png', 'jpg')[at % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)


def test_a_folder(fastgan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a relative path; resumed from elsewhere; a bad file is one plain line."""
    write_images(tmp_path / "my pictures")
    (tmp_path / "my pictures" / "class 1" / "bad.png").write_bytes(b"no picture")
    code, out, err = fastgan("train", "dcgan", "--data", "folder:my pictures", *DCGAN, "--out", "r")
    assert code == 0 and "20 samples of folder:" in out
    assert [line for line in err.splitlines() if "skipped" in line] == [
        f"fastgan: folder:{tmp_path / 'my pictures'}: 1 skipped: 'class 1/bad.png' (no picture that Pillow knows)"
    ]
    assert (tmp_path / "r" / "final.png").is_file()
    monkeypatch.chdir("/")
    code, out, _ = fastgan("train", "--resume", "--out", tmp_path / "r", "--steps", "6")
    assert code == 0 and "resuming" in out


def test_shards(fastgan: Any, tmp_path: Path) -> None:
    write_images(tmp_path / "x")
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as archive:
            for at, path in enumerate(sorted((tmp_path / "x").rglob("*.*"))[shard::2]):
                info = tarfile.TarInfo(f"{at}{path.suffix}")
                info.size = path.stat().st_size
                archive.addfile(info, io.BytesIO(path.read_bytes()))
    code, out, _ = fastgan("train", "dcgan", "--data", "wds:s-{0..1}.tar", *DCGAN, "--out", "r")
    assert code == 0 and "20 samples of wds:" in out
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["data"] == f"wds:{tmp_path}/s-{{0..1}}.tar"


def test_a_table(fastgan: Any, tmp_path: Path) -> None:
    rows = [f"{at % 37},{at / 7:.3f},{'abc'[at % 3]}" for at in range(200)]
    (tmp_path / "t.csv").write_text("\n".join(["age,pay,job", *rows]))
    code, out, _ = fastgan("train", "mlp", "--data", "csv:t.csv", *MLP, "--set", "generator.output=none", "--out", "r")
    assert code == 0 and "200 samples of csv:" in out
    code, _, err = fastgan("sample", "r", "--out", "rows.png")
    assert code == 2 and "are no pictures" in err and "--out samples.npz" in err and err.count("\n") == 1
    assert fastgan("sample", "r", "--n", "3", "--out", "rows.csv")[0] == 0
    assert (tmp_path / "rows.csv").read_text().splitlines()[0] == "age,pay,job"
    assert fastgan("sample", "r", "--out", "samples.npz")[0] == 0


@pytest.mark.parametrize(
    ("preset", "data", "words"),
    [
        ("dcgan", "folder:none", "none is not there"),
        ("dcgan", "folder:", "names no path: say folder:PICTURES"),
        ("dcgan", "wds:none-{0..3}.tar", "4 of 4 shards are missing"),
        ("mlp", "csv:t.csv", "t.csv, line 3: 1 cells where the header has 2"),
        ("dcgan", "csv:u.csv", "holds points of 2 numbers"),
    ],
)
def test_mistakes_are_one_line(fastgan: Any, tmp_path: Path, preset: str, data: str, words: str) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n")
    (tmp_path / "u.csv").write_text("a,b\n1,2\n")
    code, _, err = fastgan("train", preset, "--data", data, *TINY)
    assert code == 2 and len(err.splitlines()) == 1 and words in err, err
    assert not (tmp_path / "runs").exists()
