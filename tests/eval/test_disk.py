"""A file's content is on the disk before its final name is, and the name before the next step."""

import os

import pytest

from eval.core import write_json
from eval.disk import move_into_place


def test_content_then_name_then_folder(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(handle):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def seen_replace(source, target):
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    (tmp_path / "new").write_text("2")
    (tmp_path / "file").write_text("1")
    move_into_place(tmp_path / "new", tmp_path / "file")
    assert calls == ["new", "rename", tmp_path.name]
    assert (tmp_path / "file").read_text() == "2"

    calls.clear()
    write_json(tmp_path / "score.json", {})
    assert calls[1:] == ["rename", tmp_path.name]


def test_what_is_not_there_moves_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError):
        move_into_place(tmp_path / "new", tmp_path / "file")
