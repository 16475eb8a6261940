"""Answer files and their journals."""

import json
import multiprocessing

import pytest

from eval.answers import safe_name
from llava.data.errors import DataError
from llava.infer.answers import AnswerFile

KEY = {"generator": "mini", "model_files": "aa", "questions": "bb", "max_new_tokens": 8}
IDS = ["a", "b", "c", "c"]


@pytest.fixture
def answers(tmp_path):
    return AnswerFile(tmp_path / "vqa_val-4_mini.json", KEY, IDS)


def names(tmp_path):
    return sorted(file.name for file in tmp_path.iterdir())


def test_names_are_safe_in_a_file_system():
    assert safe_name("plus_mini:vqa") == "plus_mini-vqa"
    assert safe_name("llava-v1.5-7b_checkpoint-10") == "llava-v1.5-7b_checkpoint-10"
    assert "/" not in safe_name("a/../b c")


def test_answers_of_several_workers_come_together(answers, tmp_path):
    with answers.journal(0, 2) as first, answers.journal(1, 2) as second:
        first.add([(2, "Rot"), (0, "ROT\nrot")])
        second.add([(3, "красный"), (1, "")])
        assert answers.answers() == {0: "ROT\nrot", 1: "", 2: "Rot", 3: "красный"}
    assert not answers.is_finished()
    answers.finish([{"id": name} for name in IDS])
    assert answers.is_finished()
    assert names(tmp_path) == ["vqa_val-4_mini.json", "vqa_val-4_mini.json.key"]
    assert json.loads((tmp_path / "vqa_val-4_mini.json").read_text()) == [{"id": name} for name in IDS]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_journal_that_a_kill_cut_off_goes_on(answers, cut):
    with answers.journal(0, 1) as journal:
        journal.add([(0, "first"), (1, "second")])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-cut])
    kept = answers.answers()
    assert kept == {place: text for place, text in {0: "first"}.items() if cut < 50}
    with answers.journal(0, 1) as journal:
        journal.add([(1, "anew")])
    assert answers.answers() == {**kept, 1: "anew"}


def test_a_journal_cut_off_in_its_first_line_starts_anew(answers):
    with answers.journal(0, 1) as journal:
        journal.add([(0, "first")])
    journal.path.write_bytes(journal.path.read_bytes()[:20])
    assert answers.answers() == {}
    with answers.journal(0, 1) as journal:
        journal.add([(0, "anew")])
    assert answers.answers() == {0: "anew"}


def test_answers_of_others_are_refused(answers):
    with answers.journal(0, 1) as journal:
        journal.add([(0, "first")])
    other = AnswerFile(answers.path, {**KEY, "max_new_tokens": 9}, IDS)
    with pytest.raises(DataError, match=r"part-0-of-1.*unfinished.*max_new_tokens \(8 there, 9 here\).*delete it"):
        other.answers()
    answers.finish([])
    with pytest.raises(DataError, match=r"mini\.json holds answers .*max_new_tokens \(8 there, 9 here\).*delete it"):
        other.is_finished()
    answers.path.with_name(answers.path.name + ".key").unlink()
    with pytest.raises(DataError, match="did not come from this program"):
        answers.is_finished()


@pytest.mark.parametrize("line", ["{", '{"index": 0, "id": "b", "answer": "x"}', '{"index": 9, "id": "a"}', "3"])
def test_a_damaged_line_of_a_journal_is_answered_again(answers, line, caplog):
    with answers.journal(0, 1) as journal:
        journal.add([(0, "first")])
    with journal.path.open("a") as stream:
        stream.write(line + "\n")
    assert answers.answers() == {0: "first"}
    assert "part-0-of-1 is damaged" in caplog.text
    with answers.journal(0, 1) as journal:
        journal.add([(1, "second")])
    assert answers.answers() == {0: "first", 1: "second"}


def test_a_journal_without_its_key_starts_anew(answers):
    with answers.journal(0, 1) as journal:
        journal.add([(0, "first")])
    journal.path.write_bytes(journal.path.read_bytes()[5:])
    assert answers.answers() == {}
    with answers.journal(0, 1) as journal:
        journal.add([(0, "anew")])
    assert answers.answers() == {0: "anew"}


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_damaged_answer_file_is_made_again(answers, kept, caplog):
    answers.finish([{"id": name} for name in IDS])
    whole = answers.path.read_bytes()
    answers.path.write_bytes(whole[: int(len(whole) * kept)])
    assert not answers.is_finished()
    assert "is damaged and made again" in caplog.text
    answers.finish([{"id": name} for name in IDS])
    assert answers.path.read_bytes() == whole


def test_a_journal_has_one_writer(answers):
    with answers.journal(0, 1):
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=_open_and_report, args=(answers, queue))
        process.start()
        assert "another process is answering" in queue.get(timeout=30)
        process.join()
    context.Process(target=_open_and_report, args=(answers, queue)).start()
    assert queue.get(timeout=30) == "opened"


def _open_and_report(answers, queue):
    try:
        with answers.journal(0, 1):
            queue.put("opened")
    except DataError as error:
        queue.put(str(error))


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    answers = AnswerFile(tmp_path / "file" / "vqa.json", KEY, IDS)
    with pytest.raises(DataError, match=r"vqa\.json.*cannot be written"):
        answers.finish([])
