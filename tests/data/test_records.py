"""Files of records made to choke on."""

import json
import time

import pytest

from llava.data.errors import DataError
from llava.data.records import read_records

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'[{{"id": {DEEP}}}]', "nests values more than 200 levels"),
        ("[" + '{"a":' * 100_000 + "1" + "}" * 100_000 + "]", "nests values more than 200 levels"),
        ("[" * 500_000, "nests values more than 200 levels"),
        (f'{{"id": {DEEP}}}\n', "line 1: nests values without end"),
    ],
)
def test_nesting_without_end_is_a_message_at_once(tmp_path, text, message):
    file = tmp_path / "data.json"
    file.write_text(text)
    before = time.process_time()
    with pytest.raises(DataError, match=message):
        list(read_records(file))
    assert time.process_time() - before < 1


def test_a_text_full_of_brackets_is_a_text(tmp_path):
    file = tmp_path / "data.json"
    record = {"id": "a", "conversations": "[" * 5_000}
    file.write_text(json.dumps([record, record]))
    assert [raw.content for raw in read_records(file)] == [record, record]
