"""What this machine is: facts for the doctor and for the head of a benchmark. Reads /proc and package metadata only."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

__all__ = ["cpu_model", "machine_facts", "package_version", "redis_version", "versions"]

REQUIRED = ("numpy", "msgspec", "xxhash", "typer", "rich", "prometheus-client")
OPTIONAL = ("torch", "tensordict", "safetensors", "redis", "ray", "TransferQueue", "ucxx-cu12", "uvloop", "matplotlib")


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Penstock, Python and every package that matters and is installed."""
    found = {"penstock": package_version("penstock") or "unknown", "python": platform.python_version()}
    for name in (*REQUIRED, *OPTIONAL):
        installed = package_version(name)
        if installed is not None:
            found[name] = installed
    return found


def redis_version() -> str | None:
    """Return what ``redis-server --version`` says, None when there is no such program."""
    program = shutil.which("redis-server")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    return next((word.removeprefix("v=") for word in said.split() if word.startswith("v=")), said.strip())


def cpu_model() -> str:
    """Return the processor's name as /proc/cpuinfo has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def memory_bytes() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_facts() -> dict[str, object]:
    """What a figure depends on: processor, cores this process may use, memory, kernel, load when it began."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "kernel": platform.release(),
        "load_1min": round(os.getloadavg()[0], 2),
    }
