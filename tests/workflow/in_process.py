"""Jobs one after the other in this process, with stand-ins for training and answering: a hundred runs take a minute."""

import logging
from pathlib import Path
from typing import Any

import weighting_visatb
from tests.workflow import stand_ins
from tests.workflow.test_run import SMALL
from tests.workflow.world import write_experiment
from visatb.commands import report
from visatb.experiment.read import load_experiment
from visatb.workdir.layout import Layout
from visatb.workflow import job
from visatb.workflow.engine import Options, prepare
from visatb.workflow.process import StepError, tail

COMMANDS = {
    "llava.train.train": stand_ins.train,
    "inference_visatb": stand_ins.answer,
    "llava.train.make_base": stand_ins.base,
    "visatb.commands.validate": lambda _: 0,
    "weighting_visatb": weighting_visatb.main,
    "visatb.commands.report": report.main,
}


class World:
    """An experiment, and work folders of it; `settings` replace those of a small one with three methods."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        settings = {**SMALL, "methods": ["EW", "VisATB", "STL"], **settings}
        self.file = write_experiment(folder, {"a": {}, "b": {}}, **settings)
        self.fails = lambda module, words: False
        self.calls: list[str] = []

    def command(self, command, log, *_) -> None:
        """What the jobs start in place of processes."""
        words = [str(word) for word in command.arguments]
        if self.fails(command.module, words):
            raise StepError("told to fail")
        main = COMMANDS[command.module]
        self.calls.append(f"{command.module} {' '.join(words)}")
        with open(log, "a") as stream:
            handler = logging.StreamHandler(stream)
            logging.getLogger().addHandler(handler)
            try:
                if main(words):
                    raise StepError("exit code 2")
            finally:
                logging.getLogger().removeHandler(handler)

    def run(self, workdir: Path) -> str | None:
        """Do what is left; returns the log of the first job that failed, None where all is done."""
        layout = Layout(workdir)
        self.calls.clear()
        for one in prepare(load_experiment(self.file), layout, Options()):
            log = layout.log(one.name)
            log.parent.mkdir(exist_ok=True)
            log.touch()
            handler = logging.FileHandler(log)
            logging.getLogger().addHandler(handler)
            try:
                if job.main([str(workdir), one.name]):
                    return tail(log)
            finally:
                logging.getLogger().removeHandler(handler)
                handler.close()
        return None
