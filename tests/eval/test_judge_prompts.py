"""What the judge is asked, and how its verdict is read."""

import json

import pytest

from eval.errors import EvaluationError
from eval.judge_cache import Reply
from eval.judge_prompts import Contexts, Rules, grade_messages, read_grade, read_review, review_messages
from tests.eval.judge_records import sample, write


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 7\nBecause.", (8, 7)),
        ("8 7", (8, 7)),
        ("\n\n 8.5, 7 \nx", (8.5, 7)),
        ("(10, 1)\nx", (10, 1)),
        ("**8 6**\nx", (8, 6)),
        ("Scores: 8/10 6/10.\nx", (8, 6)),
        ("8 and 6", (8, 6)),
        ("9 0\nx", (9, 0)),
        ("<think>\n3 3\n</think>\n\n8 6\nx", (8, 6)),
        ("", None),
        ("8", None),
        ("8.7", None),
        ("87", None),
        ("8 7 6", None),
        ("-8 7", None),
        ("8 -7", None),
        ("11 7", None),
        ("85 90", None),
        ("0 7", None),
        ("Assistant 1 is better: 8 6", None),
        ("Both are good.\n8 6", None),
        ("nan nan", None),
    ],
)
def test_scores_of_a_review_stand_in_its_first_line(text, scores):
    assert read_review(Reply(text)) == scores


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("0.7", 0.7), ("1.0", 1), ("0", 0), ("1", 1), (" Grade: 0.5\n", 0.5), ("`0.3`", 0.3), ("0.3.", 0.3),
        ("1.1", None), ("0.5 0.6", None), ("-0.5", None), ("5", None), ("half", None), ("", None), ("0,5", None),
    ],
)  # fmt: skip
def test_grades(text, grade):
    assert read_grade(Reply(text)) == (None if grade is None else (grade,))


@pytest.mark.parametrize("read", [read_review, read_grade])
def test_a_line_that_the_limit_cut_off_is_no_verdict(read):
    line = "8 6" if read is read_review else "0.6"
    assert read(Reply(line, "stop"))
    assert read(Reply(line, "length")) is None
    assert read(Reply(f"{line}\nBec", "length"))


def test_a_review_shows_context_question_reference_answer_and_rule_in_this_order(tmp_path):
    one = sample(tmp_path, "What is {it}?", "The reference.", "The {answer}.", context="A cat.", category="conv")
    messages = review_messages(one, Rules().find("conv", "A cat."), "A cat.")
    assert [message["role"] for message in messages] == ["system", "user"]
    text = messages[1]["content"]
    parts = [
        "[Context]\nA cat.",
        "[Question]\nWhat is {it}?",
        "[Assistant 1]\nThe reference.\n",
        "[End of Assistant 1]",
    ]
    parts += ["[Assistant 2]\nThe {answer}.\n", "[End of Assistant 2]", "[System]\n", "1 (worst) to 10 (best)"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "<image>" not in text


def test_our_own_rule_says_what_the_judge_is_told_of_the_image():
    rules = Rules()
    told = {
        context: rules.find("conv", context).prompt for context in ("", "A cat.", "A cat.\n\ncat: [0.1, 0.2, 0.5, 1.0]")
    }
    assert len(set(told.values())) == 3
    assert "box" in told["A cat.\n\ncat: [0.1, 0.2, 0.5, 1.0]"]
    assert "context above" not in told[""]


def test_rules_of_a_file_by_category_and_kind_of_context(tmp_path):
    names = ("conv", "complex", "llava_bench_conv", "default")
    content = {name: {"role": "Helper", "prompt": f"rule {name}"} for name in names}
    rules = Rules(write(tmp_path / "rule.json", content))
    boxes = "A cat.\n\ncat: [0.1, 0.2, 0.5, 1.0]"
    assert rules.find("conv", boxes).prompt == "rule conv"
    assert rules.find("conversation", boxes).prompt == "rule conv"
    assert rules.find("complex_reasoning", boxes).prompt == "rule complex"
    assert rules.find("conv", "A cat.").prompt == "rule llava_bench_conv"
    assert rules.find("complex", "A cat.").prompt == "rule complex"
    assert rules.find("detail", "").prompt == "rule default"
    assert rules.find("conv", "").role == "Helper"
    del content["default"]
    with pytest.raises(EvaluationError, match="no rule for category 'detail'"):
        Rules(write(tmp_path / "rule.json", content)).find("detail", "")


@pytest.mark.parametrize("content", [[], {"conv": "a text"}, {"conv": {"prompt": "no role"}}])
def test_a_broken_rule_file_is_named(tmp_path, content):
    with pytest.raises(EvaluationError, match=r"rule\.json: not a file of rules"):
        Rules(write(tmp_path / "rule.json", content))


def test_contexts_come_from_the_record_then_the_file(tmp_path):
    path = tmp_path / "context.jsonl"
    lines = [
        {"image": "1.jpg", "captions": ["A cat.", "It sits."], "instances": [{"category": "cat", "bbox": [0.1, 0.2]}]},
        {"id": 2, "image": "002.jpg", "caption": "A street."},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    contexts = Contexts(path)
    assert contexts.find(sample(tmp_path, image="val2014/COCO_val2014_1.jpg")) == "A cat.\nIt sits.\n\ncat: [0.1, 0.2]"
    assert contexts.find(sample(tmp_path, image="002.jpg")) == "A street."
    assert contexts.find(sample(tmp_path, image="002.jpg", context="Its own.")) == "Its own."
    with pytest.raises(EvaluationError, match=r"record id q0: .*context\.jsonl does not describe its image, '3\.jpg'"):
        contexts.find(sample(tmp_path, image="3.jpg"))
    path.write_text('{"image": "1.jpg"}\n')
    with pytest.raises(EvaluationError, match=r"context\.jsonl, line 1: not a context"):
        Contexts(path)


def test_a_review_without_context_is_warned_of_once(tmp_path, caplog):
    contexts = Contexts()
    assert [contexts.find(sample(tmp_path)) for _ in range(2)] == ["", ""]
    assert len([entry for entry in caplog.records if "no `context`" in entry.message]) == 1


def test_mm_vets_question_shows_truth_and_answer(tmp_path):
    one = sample(tmp_path, "What {is} it?", ["x", "y"], "An {answer}")
    (message,) = grade_messages(one)
    assert message["content"].endswith("Question: What {is} it?\nTruth: x <OR> y\nAnswer: An {answer}\nGrade:")
