"""The manifest of a checkpoint: its plain values as JSON, under a version number, each value of the kind it has to be.

Version 2 says how long each file is and how many rows without an update the guard has seen (``stuck``). Version 1
did not; the oldest of it had neither rollbacks nor rows that may be replaced.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FORMAT, VERSION = "fastgan-checkpoint", 2
MOST = 1 << 26  # bytes of a manifest
OWN = ("format", "version", "sha256", "bytes", "digest")  # what is the manifest's and no value of the run

Values = dict[str, Any]


class DamagedError(ValueError):
    """What is wrong with a manifest, for the sentence that says which checkpoint it is."""


class ForeignError(ValueError):
    """A manifest that is not fastgan's at all."""


class NewerError(ValueError):
    """A manifest of a version that this fastgan cannot read; its text is that version."""


def write(values: Mapping[str, Any], sums: Mapping[str, str], sizes: Mapping[str, int]) -> bytes:
    """The manifest of a checkpoint whose files have these SHA-256 sums and sizes in bytes."""
    known = {key: value for key, value in values.items() if key not in OWN}
    manifest = {"format": FORMAT, "version": VERSION, **known, "bytes": dict(sizes), "sha256": dict(sums)}
    return json.dumps({**manifest, "digest": digest(manifest)}, indent=1).encode()


def read(content: bytes, files: Sequence[str], optional: Sequence[str]) -> tuple[Values, dict[str, str], Values]:
    """The values of a manifest as version 2 has them, and the files' sums and sizes (none where it knew none).

    ``files`` have to be among them, and nothing else but ``optional`` may be. Raises one of the errors above.
    """
    try:
        manifest = json.loads(content, object_pairs_hook=_once)
        known = isinstance(manifest, dict) and digest({k: v for k, v in manifest.items() if k != "digest"})
    except (ValueError, RecursionError) as error:
        raise DamagedError("is not JSON") from error
    if not known or manifest.get("format") != FORMAT:
        raise ForeignError
    version = manifest.get("version")
    if type(version) is not int or version not in READERS:
        raise NewerError(repr(version)[:40])
    if manifest.get("digest") != known:
        raise DamagedError("does not match its checksum")
    values, sums, sizes = READERS[version](manifest)
    _check(values)
    if not _about(sums, files, optional, lambda value: _named(value) and re.fullmatch("[0-9a-f]{64}", value)):
        raise DamagedError("lists other files than a checkpoint has")
    if sizes is None:
        sizes = {}
    elif not _about(sizes, files, optional, _count) or sizes.keys() != sums.keys():
        raise DamagedError("gives sizes of other files than a checkpoint has")
    return values, sums, sizes


def digest(manifest: Mapping[str, Any]) -> str:
    """The checksum of a manifest's content."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _first(manifest: Values) -> tuple[Values, Any, None]:
    values = {"stuck": [0, 0], "rollbacks": 0, "lr_factor": 1.0, "last_row": manifest.get("step"), **_own(manifest)}
    return values, manifest.get("sha256"), None


def _second(manifest: Values) -> tuple[Values, Any, Any]:
    return _own(manifest), manifest.get("sha256"), manifest.get("bytes") or ()


READERS: dict[int, Callable[[Values], tuple[Values, Any, Any]]] = {1: _first, 2: _second}  # None: it knew no sizes


def _own(manifest: Values) -> Values:
    return {key: value for key, value in manifest.items() if key not in OWN}


def _once(pairs: list[tuple[str, Any]]) -> Values:
    """An object; one that says something twice says nothing."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is there twice")
    return values


def _about(told: Any, files: Sequence[str], optional: Sequence[str], fits: Callable[[Any], Any]) -> bool:
    """Whether ``told`` has something that fits to say of each file, and of no other than ``optional`` ones."""
    if not isinstance(told, dict) or not set(files) <= told.keys() <= {*files, *optional}:
        return False
    return all(fits(value) for value in told.values())


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _named(value: Any) -> bool:
    return isinstance(value, str)


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_count, value))


KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("step", "images", "drawn", "last_row", "rollbacks", "world"), _count),
    **dict.fromkeys(("skipped", "stuck"), _pair),
    "seconds": lambda value: _number(value) and value >= 0,
    "lr_factor": lambda value: _number(value) and 0 < value <= 1,
    **dict.fromkeys(("latent_device", "table"), _named),
    "sample_shape": lambda value: isinstance(value, list) and all(_count(side) and 0 < side < 2**20 for side in value),
    "best": lambda value: isinstance(value, dict) and _named(value.get("metric")) and _number(value.get("value")),
    "optimizer_scalars": lambda value: isinstance(value, dict),
}


def _check(values: Mapping[str, Any]) -> None:
    """Raise DamagedError unless the values that the house knows are of their kinds."""
    if "step" not in values:
        raise DamagedError("does not say its step")
    for name, fits in KINDS.items():
        if name in values and not fits(values[name]):
            raise DamagedError(f"has a wrong {name}: {values[name]!r:.60}")
    if values.get("last_row", 0) > values["step"]:
        raise DamagedError("has a row after its step")
