"""What the figures were measured with. No name of the machine, and no path."""

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("dynamics-sync", "aiohttp", "psycopg")


def machine() -> Mapping[str, str]:
    """The processor, its cores that may be used, the memory, the system's kernel, and what else is going on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 1024**3:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def versions(postgres: str, peers: Mapping[str, str]) -> Mapping[str, str]:
    """Of Python, PostgreSQL, what we are made of, and the peers."""
    ours = {name: version(name) for name in LIBRARIES}
    return {"Python": platform.python_version(), "PostgreSQL": postgres, **ours, **peers}


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", told.read_text()) if told.exists() else None
    return found[1] if found else platform.machine()
