"""`wds:PATTERN`: tar shards by their headers, as Python's own tarfile writes them; patterns; keys and labels."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgan.data import load
from fastgan.data.shards import contents, expanded
from fastgan.data.tar import TarError, members
from fastgan.errors import UserError

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(7)
Entries = Sequence[tuple[str, bytes]]


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def tar(entries: Entries, **options: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


PICTURES = RNG.integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
FILES = [png(picture) for picture in PICTURES]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_sees(format: int) -> None:
    names = ["a", "d/b.png", "x" * 100, f"{'y' * 60}/{'z' * 90}"]
    if format != tarfile.USTAR_FORMAT:
        names += ["ä.png", "n" * 5000, "new\nline"]
    file = io.BytesIO(tar([(name, RNG.bytes(at * 300)) for at, name in enumerate(names)], format=format))
    seen = [(member.name, member.start, member.size) for member in members(file)]
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        assert seen == [(info.name, info.offset_data, info.size) for info in archive]
    assert [name for name, *_ in seen] == names


def test_only_regular_files_are_members() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"{kind!r}.png")
            info.type, info.linkname = kind, "../../etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("../../real.png"))
    assert [member.name for member in members(file)] == ["../../real.png"]


def test_a_large_size_is_read_in_base_256() -> None:
    content = bytearray(tar([("a", b"hello")], format=tarfile.GNU_FORMAT))
    content[124:136] = b"\x80" + (2**40).to_bytes(11, "big")
    header = bytes(content[:148]) + b" " * 8 + bytes(content[156:512])
    content[148:156] = f"{sum(header):06o}\0 ".encode()
    with pytest.raises(TarError, match="cut short: a member of 1,099,511,627,776 bytes"):
        list(members(io.BytesIO(bytes(content))))


def test_what_is_cut_short_keeps_what_came_before() -> None:
    whole = tar([("a.png", FILES[0]), ("b.png", FILES[1])])
    for length in range(1024 + len(FILES[0]), 2048 + len(FILES[1]), 97):
        found = contents(io.BytesIO(whole[:length]))
        kept = [key for key, sample in found.samples.items() if sample.picture]
        assert kept[:1] == ["a"] and (len(kept) == 2) != bool(found.skipped and "cut" in found.skipped[0].why), length


def test_pictures_and_labels(bare: Path) -> None:
    for shard in range(2):
        entries = [
            (f"{at}.{ending}", content)
            for at in range(3)
            for ending, content in (("png", FILES[3 * shard + at]), ("cls", str(at).encode()), ("txt", b"caption"))
        ]
        (bare / f"s-{shard:02}.tar").write_bytes(tar(entries))
    for pattern in ("s-{00..01}.tar", "s-*.tar", "s-{00,01}.tar", "s-0[01].tar"):
        data = load(f"wds:{bare / pattern}")
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), PICTURES)
        assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == ("0", "1", "2")
    assert load(f"wds:{bare / 's-01.tar'}", image_size=8).sample_shape == (3, 8, 8)


def test_labels_by_name_and_in_json(bare: Path) -> None:
    entries = [("a/1.png", FILES[0]), ("a/1.json", json.dumps({"label": "dog"}).encode()), ("b.x/2.PNG", FILES[1])]
    (bare / "s.tar").write_bytes(tar([*entries, ("b.x/2.cls", b" cat\n")]))
    data = load(f"wds:{bare / 's.tar'}")
    assert data.classes == ("cat", "dog") and data.labels is not None and data.labels.tolist() == [1, 0]
    (bare / "t.tar").write_bytes(tar(entries))
    with pytest.warns(UserWarning, match="1 of 2 pictures have no label: none is used"):
        assert load(f"wds:{bare / 't.tar'}").labels is None


@pytest.mark.parametrize(
    ("ending", "content"),
    [("cls", b"-1"), ("cls", b"99999999999"), ("cls", b""), ("cls", b"\xff"), ("cls", b"x" * 300), ("json", b"{"),
     ("json", b'{"label": 1.5}'), ("json", b'{"label": true}'), ("json", b"[" * 100_000), ("json", b'{"label": []}')],
)  # fmt: skip
def test_labels_that_are_none_are_listed(ending: str, content: bytes) -> None:
    found = contents(io.BytesIO(tar([("1.png", FILES[0]), (f"1.{ending}", content)])))
    if content == b"-1":
        assert found.samples["1"].label == "-1"  # a name like any other
    else:
        assert found.samples["1"].label is None and found.skipped[0].name == f"1.{ending}"


def test_a_key_that_is_there_twice(bare: Path) -> None:
    entries = [("1.png", FILES[0]), ("1.cls", b"0"), ("1.png", FILES[1]), ("1.jpg", FILES[2]), ("1.cls", b"1")]
    (bare / "s.tar").write_bytes(tar(entries))
    with pytest.warns(UserWarning, match=r"3 skipped: 's.tar: 1.png' \(its key has a picture already\)"):
        data = load(f"wds:{bare / 's.tar'}")
    assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), PICTURES[0]) and len(data) == 1


def test_what_is_no_shard_is_refused_or_listed(bare: Path) -> None:
    (bare / "s.tar").write_bytes(b"hello" * 200)
    (bare / "z.tar").write_bytes(gzip.compress(tar([("1.png", FILES[0])])))
    (bare / "empty.tar").write_bytes(b"")
    (bare / "text.tar").write_bytes(tar([("1.txt", b"hello")]))
    for name, why in (("s", "damaged one, at byte 0"), ("z", "compressed"), ("empty", "check"), ("text", "check")):
        with pytest.raises(UserError, match="no pictures .*" + why):
            load(f"wds:{bare / name}.tar")
    (bare / "good.tar").write_bytes(tar([("1.png", FILES[0])]))
    with pytest.warns(UserWarning, match=r"1 skipped: 's.tar: the rest' \(no header, or a damaged one, at byte 0\)"):
        assert len(load(f"wds:{bare}/{{good,s}}.tar")) == 1


def test_patterns() -> None:
    assert expanded("a-{008..011}.tar") == [f"a-{at:03}.tar" for at in range(8, 12)]
    assert expanded("{9..10}/{x,y}") == ["9/x", "9/y", "10/x", "10/y"]
    refused = {"{5..1}": "go up", "{0..999999}": "go up", "{x}": "no range", "{a{1..2},b}": "braces within"}
    for bad, why in {**refused, "{0..999}{0..999}": "more than"}.items():
        with pytest.raises(UserError, match=why):
            expanded(bad)


def test_shards_that_are_missing_are_named(bare: Path) -> None:
    (bare / "s-0.tar").write_bytes(tar([("1.png", FILES[0])]))
    with pytest.raises(UserError, match=r"2 of 3 shards are missing, .*s-1.tar for one"):
        load(f"wds:{bare}/s-{{0..2}}.tar")
    with pytest.raises(UserError, match="no shard is called"):
        load(f"wds:{bare}/t-*.tar")
