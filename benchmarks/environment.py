"""Where a record was measured: device, software, commit, date. What cannot be learned is ``None``."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastgan.benchmarks.setting import Setting


def environment(setting: Setting) -> dict[str, Any]:
    """Return the environment block of a record."""
    return {
        "device": torch.cuda.get_device_name(setting.device) if setting.on_gpu else "CPU",
        "capability": "{}.{}".format(*torch.cuda.get_device_capability(setting.device)) if setting.on_gpu else None,
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        **(card(setting.device) if setting.on_gpu else dict.fromkeys(CARD)),
        "torch": torch.__version__,
        "triton": version("triton"),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": now(),
        **commit(),
        "code": code(),
    }


CARD = {  # our name -> nvidia-smi's
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
}


def now() -> str:
    """Return date and time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def state(setting: Setting) -> dict[str, Any]:
    """Return the card's clocks, temperature and power at this moment."""
    found = card(setting.device) if setting.on_gpu else dict.fromkeys(CARD)
    return {name: found[name] for name in CARD if name != "driver"}


def card(device: torch.device) -> dict[str, Any]:
    """Ask nvidia-smi about the card that PyTorch calls ``device`` (the two may number cards differently)."""
    identity = f"GPU-{getattr(torch.cuda.get_device_properties(device), 'uuid', '')}"
    query = ["nvidia-smi", "-i", identity, f"--query-gpu={','.join(CARD.values())}", "--format=csv,noheader,nounits"]
    fields = (output(query) or "").split(", ")
    if len(fields) != len(CARD):
        return dict.fromkeys(CARD)
    return {name: text if name == "driver" else number(text) for name, text in zip(CARD, fields, strict=True)}


def number(text: str) -> float | None:
    """Parse one of nvidia-smi's numbers; ``[N/A]`` is ``None``."""
    try:
        return float(text)
    except ValueError:
        return None


def commit() -> dict[str, Any]:
    """Return the commit of the clone that this file belongs to; an installed copy has none."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    tracked = output([*git, "ls-files", "--error-unmatch", Path(__file__).name])
    name = output([*git, "rev-parse", "HEAD"]) if tracked else None
    if name is None:
        return {"commit": None, "dirty": None}
    changed = output([*git, "status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results"])
    return {"commit": name, "dirty": bool(changed)}


def code() -> str:
    """Return a digest of the package's sources, tuned tables included: what else has changed has no say in times."""
    root = Path(sys.modules["fastgan"].__file__ or "").parent
    digest = hashlib.sha256()
    for top in (root, root / "kernels", root / "benchmarks"):  # which may be links
        for path in sorted(top.rglob("*")):
            name = path.relative_to(root)
            if path.suffix in (".py", ".cu", ".json") and not {"results", "predicted"} & {*name.parts}:
                digest.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def processor() -> str | None:
    """Return the CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def version(package: str) -> str | None:
    """Return the installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def output(command: list[str]) -> str | None:
    """Return what a command prints; ``None`` where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
