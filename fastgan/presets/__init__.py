"""Each system as a few lines of configuration. Name a preset, or write a YAML file that starts from one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgan.errors import UserError, require, unknown
from fastgan.presets import plain
from fastgan.presets.catalogue import ABOUT, ALIASES, PRESETS
from fastgan.presets.config import (
    MAY_CHANGE_ON_RESUME,
    SCHEDULED,
    Config,
    difference,
    from_dict,
    nested,
    to_dict,
)
from fastgan.presets.groups import Average, CriticWarmup, Network, Optimizer, Penalty, Schedule

__all__ = [
    "ABOUT",
    "ALIASES",
    "MAY_CHANGE_ON_RESUME",
    "PRESETS",
    "SCHEDULED",
    "Average",
    "Config",
    "CriticWarmup",
    "Network",
    "Optimizer",
    "Penalty",
    "Schedule",
    "difference",
    "dump",
    "from_dict",
    "from_file",
    "nested",
    "preset",
    "read",
    "start",
    "to_dict",
]


def preset(name: str) -> Config:
    """Look a preset up by name or alias. Raises UserError with the nearest known name."""
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise unknown("preset", name, [*PRESETS, *ALIASES])
    return PRESETS[name]


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys that a YAML file sets. Raises UserError where it is missing, unreadable or no mapping."""
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would never end
            raise UserError(f"cannot read the configuration {path}: it is no file")
        with Path(path).open(encoding="utf-8") as file:
            return keys_of(file.read(plain.LONGEST + 1), path)
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not YAML: {error}") from error


def keys_of(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys that the text of the file at ``path`` sets."""
    try:
        values = plain.loaded(text, why="reading a configuration file")
    except plain.NotPlainError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{path} is no configuration: it should hold lines such as 'preset: mlp' and 'steps: 1000'")
    return dict(values)


def from_file(path: str | os.PathLike[str], *, whole: bool = False) -> Config:
    """A configuration from a YAML file; its key ``preset`` names the preset that the other keys are laid over.

    ``whole``: the file is a run's, which has every key of its day. What the preset has become since is left out of it.
    """
    try:
        base, keys = start(read(path))
        return from_dict(keys, Config(preset=base.preset) if whole else base)
    except UserError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise UserError(f"{where}{error}") from error


def start(values: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The configuration that ``values`` start from, which their key ``preset`` names, and the keys laid over it."""
    keys = dict(values)
    name = keys.pop("preset", "custom")
    return (Config() if name == "custom" else preset(str(name))), keys


def dump(config: Config) -> str:
    """The configuration as YAML, in the order of the dataclass."""
    yaml = require("yaml", why="writing a configuration file")
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None)
    return text
