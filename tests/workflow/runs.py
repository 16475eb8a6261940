"""Starting `visatb run` with stand-ins for the slow commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


class Run:
    """Runs of one experiment file in one work folder."""

    patience = 300  # seconds

    def __init__(self, experiment: Path, **environment: str) -> None:
        self.experiment = experiment
        self.workdir = experiment.parent / "work"
        self.calls_file = experiment.parent / "calls.txt"
        path = os.pathsep.join([str(Path(__file__).parent), str(REPOSITORY)])
        self.environment = {**os.environ, "PYTHONPATH": path, "STAND_IN_CALLS": str(self.calls_file), **environment}

    def command(self, *words: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "visatb.commands.run",
            str(self.experiment),
            "--workdir",
            str(self.workdir),
            "--cold",
            *words,
        ]

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words),
            env={**self.environment, **environment},
            cwd=self.experiment.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, code: int = 0, **environment: str) -> tuple[str, str]:
        """Run to the end; returns what it printed."""
        process = self.start(*words, **environment)
        output, errors = process.communicate(timeout=self.patience)
        assert process.returncode == code, f"exit code {process.returncode}:\n{output}\n{errors}\n{self.engine_log()}"
        return output, errors

    def engine_log(self) -> str:
        log = self.workdir / "logs" / "engine.log"
        return log.read_text()[-4000:] if log.exists() else ""

    def calls(self) -> list[str]:
        """The calls of stand-ins since this was last asked."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return sorted(lines)

    def read(self, name: str) -> Any:
        return json.loads((self.workdir / name).read_text())
