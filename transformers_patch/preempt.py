"""Checkpoint and stop on SIGTERM, on all ranks after the same optimizer step.

Schedulers send SIGTERM some time before they kill a preempted job. The signal may reach ranks at different moments,
or only some of them, so the Trainer sums `requested` over the ranks once a step, with the token counts.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

EXIT_CODE = 143
"""What a preempted run exits with: 128 + SIGTERM, as schedulers expect."""


def shield_worker(worker_id: int) -> None:
    """Keep a data loader's worker alive on SIGTERM (its `worker_init_fn`).

    Launchers and schedulers signal all processes of a job; without workers the step could not be finished.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Preemption(TrainerCallback):
    """Whether this process was asked to stop (`requested`), and whether any rank was (`agreed`, set by the Trainer).

    `install` takes over SIGTERM in the main thread; a second SIGTERM then ends the process as it always would.
    """

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logger.warning("SIGTERM: saving a checkpoint after this optimizer step, then stopping")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.agreed:
            control.should_save = control.should_training_stop = True
        return control
