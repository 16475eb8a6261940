"""What every benchmark keeps beside its figures: the machine, the versions, the command, the day."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "datasets", "numpy")


def machine() -> dict[str, Any]:
    """Return processor, cores, memory (GiB) and the GPU if there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    result: dict[str, Any] = {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory, 1)}
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        result["gpu"] = sys.modules["torch"].cuda.get_device_name()
    return result


def save(name: str, figures: Any, **settings: Any) -> Path:
    """Write `results/NAME.json`: figures with settings, machine and versions."""
    versions = {package: metadata.version(package) for package in PACKAGES}
    content = {
        "benchmark": name,
        "date": date.today().isoformat(),
        "command": " ".join(["python", "-m", f"benchmarks.{name.split('-')[0]}", *sys.argv[1:]]),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions},
        "settings": settings,
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(content, indent=2) + "\n")
    return file
