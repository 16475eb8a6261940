"""Progress as commands note it for whoever watches them."""

import json
import time

import pytest

from llava.progress import VARIABLE, Progress, read_progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_share_and_seconds_left_follow_the_pace_since_the_start(tmp_path, monkeypatch, clock):
    file = tmp_path / "new" / "progress.json"
    assert read_progress(file) == (None, None)
    monkeypatch.setenv(VARIABLE, str(file))
    progress = Progress(100, 40)  # gone on with: the 40 tell nothing of the pace
    assert read_progress(file) == (0.4, None)
    clock[0] += 10
    progress.advance(20)
    assert read_progress(file) == (0.6, 20.0)  # 20 in 10 seconds, 40 are left
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_at_most_one_note_a_second_and_one_at_the_end(tmp_path, monkeypatch, clock):
    file = tmp_path / "progress.json"
    monkeypatch.setenv(VARIABLE, str(file))
    progress = Progress(4)
    for seconds, share in ((0.4, 0), (0.4, 0), (0.4, 0.75), (0.1, 1)):
        clock[0] += seconds
        progress.advance()
        assert read_progress(file)[0] == share


def test_nothing_is_noted_where_nobody_asks_by_other_ranks_or_without_room(tmp_path, monkeypatch):
    Progress(1).advance()
    file = tmp_path / "progress.json"
    monkeypatch.setenv(VARIABLE, str(file))
    monkeypatch.setenv("RANK", "1")
    Progress(1).advance()
    assert not file.exists()
    monkeypatch.delenv("RANK")
    (tmp_path / "no_folder").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no_folder" / "progress.json"))
    Progress(1).advance()


@pytest.mark.parametrize("content", ["", "[1]", '{"done": 1}', '{"done": null, "total": 2, "left": 1}'])
def test_a_note_that_is_damaged_is_none(tmp_path, content):
    file = tmp_path / "progress.json"
    file.write_text(content)
    assert read_progress(file) == (None, None)
    file.write_text(json.dumps({"done": 0, "total": 0, "left": None}))
    assert read_progress(file) == (0.0, None)
