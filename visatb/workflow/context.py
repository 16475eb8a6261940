"""What the steps of a job work with, and how they start commands."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llava.progress import VARIABLE as PROGRESS
from visatb.experiment.schema import Experiment
from visatb.workdir.layout import Layout
from visatb.workdir.state import Step, Steps
from visatb.workflow import devices
from visatb.workflow.jobs import Job
from visatb.workflow.process import PATIENCE, Stopper, run
from visatb.workflow.stage_commands import Launch
from visatb.workflow.warm import TAG

logger = logging.getLogger("visatb.job")

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Context:
    """What the steps of a job work with: `planned` are its steps, `steps` what is known of them on disk."""

    experiment: Experiment
    layout: Layout
    job: Job
    planned: tuple[Step, ...]
    steps: Steps
    stop: Stopper
    tag: str
    run_id: str  # what tells this run of the experiment from the others in the folder
    gpus: list[str] = field(default_factory=list)

    @property
    def launch(self) -> Launch:
        """How commands are started: one process per GPU, or as many as asked for where there are none."""
        launcher = self.experiment.launcher
        given = len(self.gpus) or (allotted_gpus() if launcher.gpus_per_job else 0)
        processes = given or launcher.processes
        return Launch(processes, launcher.kind, tuple(self.gpus))

    def run(self, module: str, arguments: Sequence[str], launch: Launch | None = None) -> None:
        """Run a command of ours in a process (or several) of its own."""
        command = (launch or Launch()).command(module, arguments)
        logger.info("%s", shlex.join(command.words))
        run(command, self.layout.log(self.job.name), self._environment(), self.layout.engine, self.stop)

    def _environment(self) -> dict[str, str]:
        path = os.environ.get("PYTHONPATH")
        changed = {
            TAG: self.tag,
            PROGRESS: str(self.layout.progress(self.job.name)),
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{path}" if path else str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "TQDM_MININTERVAL": "1",
        }
        if self.experiment.launcher.gpus_per_job == 0:
            changed["CUDA_VISIBLE_DEVICES"] = ""
        elif self.gpus:
            changed["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        threads = self.experiment.launcher.threads
        if threads is not None:
            changed["OMP_NUM_THREADS"] = str(threads)
        # Saving a large checkpoint on SIGTERM takes longer than torchrun's 30 seconds of patience.
        return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": f"{PATIENCE:.0f}", **os.environ, **changed}


def allotted_gpus() -> int:
    """The GPUs that SLURM gave to this job."""
    if "SLURM_JOB_ID" not in os.environ or devices.OFFERED in os.environ:
        return 0
    return len(devices.visible_gpus())
