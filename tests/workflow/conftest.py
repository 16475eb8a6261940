import signal

import pytest

from tests.workflow.in_process import World
from visatb.workflow import context


@pytest.fixture
def world(tmp_path, monkeypatch, request):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    made = World(tmp_path)
    monkeypatch.setattr(context, "run", made.command)
    monkeypatch.setattr("os.fsync", lambda _: None)  # no power is cut here, and it takes half of the time
    # Drawing takes ten times as long as all the rest, and nothing is read from drawings.
    monkeypatch.setattr("visatb.report.page.write_figures", lambda run, losses, folder: [])
    yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)
