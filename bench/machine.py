"""Where it was measured: the machine, the versions, the file system."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess

import apsw

from bench.contenders import REDIS_SERVER
from idemreg import __version__

__all__ = ["file_system", "machine", "revision"]

DISTRIBUTIONS = ("aws-lambda-powertools", "dbos", "diskcache", "hiredis", "huey", "joblib", "redis")


def machine(folder: str) -> dict[str, str | int]:
    """Facts that a reader needs to judge a figure; none that names the machine."""
    found: dict[str, str | int] = {
        "idemreg": __version__,
        "python": platform.python_version(),
        "apsw": apsw.apsw_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "file system": file_system(folder),
    }
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which(REDIS_SERVER):
        said = subprocess.run([REDIS_SERVER, "--version"], capture_output=True, text=True, check=False).stdout
        found["redis server"] = next((word[2:] for word in said.split() if word.startswith("v=")), "unknown")
    return found


def revision() -> str:
    """Which code it was: the commit, with a + where something was changed since; empty outside of a checkout."""
    command = ["git", "-C", os.path.dirname(os.path.abspath(__file__)), "describe", "--always", "--dirty=+"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return said.stdout.strip()


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return platform.machine()


def file_system(folder: str) -> str:
    """Its type, by the longest mount point above the folder."""
    folder, best, kind = os.path.realpath(folder), "", "unknown"
    try:
        with open("/proc/self/mounts", encoding="utf-8") as file:
            for line in file:
                _, point, found = line.split()[:3]
                is_above = folder == point or folder.startswith(point.rstrip("/") + "/")
                if is_above and len(point) >= len(best):
                    best, kind = point, found
    except OSError:
        pass
    return kind
