"""Where data sets are looked for, and where downloads are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where files that can be had again are kept: FASTGAN_CACHE, else the platform's own place for them."""
    chosen = os.environ.get("FASTGAN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "fastgan"


def data_folders() -> list[Path]:
    """Folders that may hold data sets, in the order of search: FASTGAN_DATA, ./data, the cache."""
    chosen = os.environ.get("FASTGAN_DATA")
    given = [Path(chosen).expanduser()] if chosen else []
    return [*given, Path("data"), cache_folder()]
