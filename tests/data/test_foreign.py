"""Files that are something else than records are called what they are, with what to do about it."""

import gzip
import json

import pytest

from llava.data.errors import REASONS, DataError
from llava.data.records import RawRecord, check_record, read_records
from llava.infer.questions import read_questions
from tests.data.world import record

RECORD = record("What?", "A café.")
TEXT = json.dumps([RECORD], ensure_ascii=False)
LINES = json.dumps(RECORD, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("content", "what", "cure"),
    [
        (gzip.compress(TEXT.encode()), "is compressed with gzip", "gunzip"),
        (b"PK\x03\x04....", "is a zip archive", "unzip"),
        (TEXT.encode("utf-16"), "is in UTF-16", "iconv"),
        (b"id,image,question\n1,a.png,What?\n", "separated by commas", "write each row as a record"),
        (b'"id"\t"image"\n"1"\t"a.png"\n', "separated by tabs", "write each row as a record"),
        (b"Once upon a time\n", "begins with 'O'", "JSON array of records"),
        (TEXT.encode("latin-1"), "is not in UTF-8 (byte 0xe9 at", "iconv"),
        (LINES.encode("latin-1"), "is not in UTF-8 (byte 0xe9 at", "iconv"),
        (TEXT.replace('"vqa"', "NaN").encode(), "holds NaN", "write null"),
        (TEXT.replace('"vqa"', "-Infinity").encode(), "holds -Infinity", "write null"),
        ((LINES + LINES.replace('"vqa"', "NaN")).encode(), "line 2: holds NaN", "write null"),
        ((LINES + LINES.replace('"vqa"', "-Infinity")).encode(), "line 2: holds -Infinity", "write null"),
        ((LINES + LINES.replace('"vqa"', "1e400")).encode(), "line 2: holds 1e400", "write null"),
        (TEXT.replace('"vqa"', "1e400").encode(), "holds a number that is too large", "leave it out"),
        (TEXT.replace('"vqa"', "1" * 30).encode(), "holds a number that is too large", "write it as a text"),
        (json.dumps({"version": 1, "data": [RECORD]}, indent=1).encode(), "objects in `data`", "write that list alone"),
    ],
)
def test_file_is_called_what_it_is(tmp_path, content, what, cure):
    file = tmp_path / "data.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_records(file))
    text = str(caught.value)
    assert str(file) in text
    assert what in text
    assert cure in text
    assert "fetch or write" not in text


def test_the_byte_that_is_no_utf_8_is_found_behind_the_first_blocks(tmp_path):
    file = tmp_path / "data.json"
    content = ("[" + json.dumps("é" * 100_000, ensure_ascii=False) + ", ").encode() + b'"\xe9"]'
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"byte 0xe9 at {len(content) - 3}\)"):
        list(read_records(file))


@pytest.mark.parametrize("keep", range(1, 6))
def test_a_character_cut_in_two_is_a_cut_file(tmp_path, keep):
    file = tmp_path / "data.json"
    file.write_bytes(TEXT.encode()[: TEXT.index("é") + keep])
    with pytest.raises(DataError, match="cut off or broken"):
        list(read_records(file))


def test_nan_in_a_text_is_not_blamed(tmp_path):
    file = tmp_path / "data.json"
    file.write_text('[{"id": "NaN"}, {"id": NaN')
    with pytest.raises(DataError, match="holds NaN"):
        list(read_records(file))
    file.write_text('[{"id": "NaN NaN NaN NaN", }]')
    with pytest.raises(DataError, match=r"not valid JSON|cut off or broken"):
        list(read_records(file))


@pytest.mark.parametrize(
    ("content", "found", "cure"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "`messages` instead of", "visatb convert --to llava"),
        ({"data": [RECORD, RECORD]}, "`data` lists 2 objects", "write it alone"),
        ({"id": 1}, "`conversations` is missing", "must list turns"),
    ],
)
def test_records_without_conversations(tmp_path, content, found, cure):
    with pytest.raises(ValueError, match=found) as caught:
        check_record(RawRecord(0, content, 0), None, None)
    assert cure in REASONS[caught.value.reason]
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=found) as caught:
        read_questions(file, None)
    assert cure in str(caught.value)
