"""Files are whole or not there: content on the disk before its name, nothing left of a writer that failed."""

import json
import os
import re
from pathlib import Path

import pytest

from eval.errors import EvaluationError
from eval.files import as_utf8, move_into_place, read_json, whole_file, write_json, write_lines, write_records


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


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    def records():
        yield {"id": 1}
        raise RuntimeError

    for write in (write_records, write_lines):
        (tmp_path / "file").write_text("old")
        with pytest.raises(RuntimeError):
            write(tmp_path / "file", records())
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_text() == "old"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "new.json", float("nan"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("records", [[], [{"id": 1}], [{"id": 1, "text": "Ä"}, {"id": 2}]])
def test_records_and_lines_are_read_back(tmp_path, records):
    assert write_records(tmp_path / "array.json", iter(records)) == len(records)
    assert json.loads((tmp_path / "array.json").read_text(encoding="utf-8")) == records
    assert write_lines(tmp_path / "lines.jsonl", iter(records)) == len(records)
    lines = (tmp_path / "lines.jsonl").read_bytes().splitlines()
    assert lines == [as_utf8(record) for record in records]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1.5e999", "1" + "0" * 400 + ".0"])
def test_a_number_that_is_none_is_refused_with_its_file(tmp_path, number):
    """Python's parser would make infinity of 1e400 without a word."""
    file = tmp_path / "score.json"
    file.write_text(f'{{"note": "1e400 NaN", "value": {number}}}')
    with pytest.raises(EvaluationError, match=rf"{file}: holds {number[:40]}.*; write null or leave the field out"):
        read_json(file)
    file.write_text('{"note": "1e400 NaN", "value": 1e300}')
    assert read_json(file)["value"] == 1e300


def test_colleagues_may_read_what_a_library_wrote_for_its_user_alone(tmp_path):
    with whole_file(tmp_path / "folder" / "weights") as temporary:
        temporary.write_text("0")
        temporary.chmod(0o600)
    assert (tmp_path / "folder" / "weights").stat().st_mode & 0o777 == 0o644


def test_nobody_else_writes_files_under_a_temporary_name():
    """But for whole folders, and weighting_visatb.py, which can be copied alone."""
    root = Path(__file__).parents[2]
    folders = {"llava/data/index.py", "llava/model/shards.py", "llava/train/folder.py", "eval/files.py"}
    packages = ("eval", "llava", "transformers_patch", "visatb")
    found = {
        str(path.relative_to(root))
        for package in packages
        for path in (root / package).rglob("*.py")
        if re.search(r"os\.(replace|rename)\(|mkstemp|\.getpid\(\)\}", path.read_text(encoding="utf-8"))
    }
    assert found == folders
