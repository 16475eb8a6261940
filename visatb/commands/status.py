"""`visatb status`: where an experiment stands, read from its work folder; a live table while it runs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from eval.errors import bad_input
from visatb.commands.terminal import duration, plain_console
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workflow.status import Status, read_status

STYLES = {"done": "green", "running": "bold cyan", "waiting": "dim", "failed": "bold red", "stopped": "yellow"}


def render(status: Status) -> Group:
    """The status as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, width in (("phase", 10), ("job", 12), ("state", 7), ("step", 4)):
        table.add_column(name, no_wrap=True, min_width=width)  # where there is little room, long names give way
    for name in ("progress", "time", "still"):
        table.add_column(name, justify="right", no_wrap=True)
    phase = ""
    for job in status.jobs:
        shown = "" if job.progress is None or job.state != "running" else f"{_bar(job.progress)} {job.progress:4.0%}"
        table.add_row(
            job.phase if job.phase != phase else "",
            job.name,
            Text(job.state, STYLES[job.state]),
            job.step,
            shown,
            duration(job.seconds) if job.seconds else "",
            duration(job.left) if job.left is not None and job.state == "running" else "",
        )
        phase = job.phase
    head = f"{status.name}: {status.done} of {len(status.jobs)} jobs done" + ("" if status.running else ", not running")
    return Group(Text(head, "bold"), table, *(Text(remark, "yellow") for remark in status.remarks))


def _bar(share: float, width: int = 12) -> str:
    full = int(share * width)
    return "━" * full + "╌" * (width - full)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    parser = argparse.ArgumentParser(prog="visatb status", description=__doc__)
    parser.add_argument("workdir", type=Path, metavar="WORKDIR")
    parser.add_argument("--once", action="store_true", help="show it once, also while it runs")
    arguments = parser.parse_args(argv)
    console = plain_console()
    try:
        status = read_status(arguments.workdir)
        if arguments.once or not status.running or not console.is_terminal:
            console.print(render(status))
            return 0
        with Live(render(status), console=console, refresh_per_second=2) as live:
            while status.running:
                time.sleep(1)
                status = read_status(arguments.workdir)
                live.update(render(status))
    except (ExperimentError, OSError) as error:
        return bad_input(error)
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
