"""Downloads, from a server on this machine: what is right arrives whole, what is wrong leaves nothing behind."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import download, load, mnist
from fastgan.errors import UserError

CONTENT = np.random.default_rng(5).bytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path; `cut` is how many bytes of a body are held back though its length was announced."""

    files: dict[str, bytes]
    asked: list[str]
    cut: int = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = {}, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - self.server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(bare: Path) -> Path:
    return bare / "cache" / "set" / "file.gz"


def fetch(target: Path, *mirrors: str) -> None:
    download.fetch(mirrors, target, sha256=SHA256, size=len(CONTENT))


def left(target: Path) -> list[str]:
    return [path.name for path in target.parent.iterdir()]


def test_good_file(server: Server, target: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server.files["/file.gz"] = gzip.compress(CONTENT)
    fetch(target, server.url)
    assert gzip.decompress(target.read_bytes()) == CONTENT
    assert left(target) == ["file.gz"]
    assert "file.gz" in capfd.readouterr().err  # the progress bar


def test_any_compression_of_the_content_is_right(server: Server, target: Path) -> None:
    server.files["/file.gz"] = gzip.compress(CONTENT, 1, mtime=123)
    fetch(target, server.url)
    assert gzip.decompress(target.read_bytes()) == CONTENT


@pytest.mark.parametrize(
    "body, reason",
    [
        (gzip.compress(CONTENT[:-1] + b"?"), "checksum is wrong"),
        (gzip.compress(CONTENT[:-1]), "checksum is wrong"),
        (gzip.compress(CONTENT + b"more"), "checksum is wrong"),
        (gzip.compress(CONTENT)[:-20], "end-of-stream"),
        (b"<html>come back later</html>", "Not a gzipped file"),
        (b"", "checksum is wrong"),
        (None, "404"),
        (gzip.compress(CONTENT + np.random.default_rng(6).bytes(5_000_000)), "more than the 265536 bytes"),
        (gzip.compress(bytes(100_000_000)), "checksum is wrong"),
    ],
    ids=["other", "shorter", "longer", "cut", "html", "empty", "404", "endless", "bomb"],
)
def test_wrong_file(server: Server, target: Path, body: bytes | None, reason: str) -> None:
    if body is not None:
        server.files["/file.gz"] = body
    with pytest.raises(UserError) as caught:
        fetch(target, server.url)
    assert reason in str(caught.value) and "127.0.0.1" in str(caught.value)
    assert left(target) == []


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Digest:
        seen = 0

        def update(self, chunk: bytes) -> None:
            self.seen += len(chunk)

        def hexdigest(self) -> str:
            return ""

    digest = Digest()
    monkeypatch.setattr(download.hashlib, "sha256", lambda: digest)
    (tmp_path / "x").write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(ValueError, match="checksum is wrong"):
        download._check(tmp_path / "x", SHA256, size=1000)
    assert digest.seen <= 1000 + download.CHUNK


def test_connection_lost(server: Server, target: Path) -> None:
    server.files["/file.gz"] = gzip.compress(CONTENT)
    server.cut = 1000
    with pytest.raises(UserError):
        fetch(target, server.url)
    assert left(target) == []


def test_connection_refused(target: Path) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1: Connection refused"):
        fetch(target, "http://127.0.0.1:1/")
    assert left(target) == []


def test_next_mirror(server: Server, target: Path) -> None:
    server.files["/bad/file.gz"] = gzip.compress(b"other")
    server.files["/good/file.gz"] = gzip.compress(CONTENT)
    fetch(target, "http://127.0.0.1:1/", f"{server.url}missing/", f"{server.url}bad/", f"{server.url}good/")
    assert gzip.decompress(target.read_bytes()) == CONTENT
    assert server.asked == ["/missing/file.gz", "/bad/file.gz", "/good/file.gz"]
    assert left(target) == ["file.gz"]


def test_interrupted(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(part: Path, sha256: str, size: int) -> None:
        assert part.stat().st_size > 0
        raise KeyboardInterrupt

    server.files["/file.gz"] = gzip.compress(CONTENT)
    monkeypatch.setattr(download, "_check", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(target, server.url)
    assert left(target) == []


def test_cache_that_cannot_be_made(bare: Path) -> None:
    (bare / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be made .*: set FASTGAN_CACHE"):
        fetch(bare / "cache/set/file.gz", "http://127.0.0.1:1/")


@pytest.fixture
def served(server: Server, bare: Path, write_mnist: Callable, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """A small mnist that is found nowhere but on the server."""
    arrays = write_mnist(bare / "away")
    sha256, sizes = {}, {}
    for path in (bare / "away").iterdir():
        content = gzip.decompress(path.read_bytes())
        server.files[f"/{path.name}"] = path.read_bytes()
        sha256[path.stem], sizes[path.stem] = hashlib.sha256(content).hexdigest(), len(content)
    family = dataclasses.replace(mnist._FAMILIES["mnist"], mirrors=(server.url,), sha256=sha256)
    monkeypatch.setitem(mnist._FAMILIES, "mnist", family)
    monkeypatch.setattr(mnist, "_SIZES", sizes)
    return arrays


def test_load_downloads_once(server: Server, bare: Path, served: tuple) -> None:
    for _ in range(2):
        data = load("mnist")
        assert np.array_equal(data.images[:, 0].numpy(), served[0])
    assert sorted(server.asked) == ["/train-images-idx3-ubyte.gz", "/train-labels-idx1-ubyte.gz"]
    files = sorted(path.name for path in (bare / "cache/mnist").iterdir())
    assert files == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


def test_load_takes_up_where_it_failed(server: Server, served: tuple) -> None:
    images = server.files.pop("/train-images-idx3-ubyte.gz")
    with pytest.raises(UserError) as caught:
        load("mnist")
    text = str(caught.value)
    assert "404" in text and "data/mnist" in text and "mnist:FOLDER" in text and "\n" not in text
    server.files["/train-images-idx3-ubyte.gz"] = images
    server.asked.clear()
    assert len(load("mnist")) == 7
    assert server.asked == ["/train-images-idx3-ubyte.gz"]


def test_load_may_not_download(server: Server, served: tuple) -> None:
    with pytest.raises(UserError, match="downloading was not allowed"):
        load("mnist", allow_download=False)
    assert server.asked == []
