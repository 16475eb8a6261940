"""Parsing and scoring against cases worked by hand and against code of another form."""

import itertools
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from llava.eval.benchmark import make_record, mean_score
from llava.eval.gqa import Gqa
from llava.eval.mmbench import MMBench, read_choice
from llava.eval.mme import Mme
from llava.eval.mme import read_answer as read_mme
from llava.eval.pope import Pope, ratios, says_yes
from llava.eval.registry import BENCHMARKS
from llava.eval.seed import SeedBench
from llava.eval.sqa import ScienceQA, read_letter
from llava.eval.textvqa import TextVQA
from llava.eval.vqa import normalize, vqa_accuracy
from tests.zeroshot.mini import dump, picture

PUBLISHED = Path(__file__).parents[3] / "shared" / "data"
REAL_POPE = PUBLISHED / "pope" / "coco_pope_random_head300.json"
REAL_COCO = PUBLISHED / "llava_bench_coco"


def answered(record, text):
    record["conversations"][1]["generative_value"] = text
    return record


def chief(result):
    return result.scores[0].value


def figure(result, metric):
    [value] = [score.value for score in result.scores if score.metric == metric]
    return value


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Dog.", "dog"),
        ("two", "2"),
        ("None", "0"),
        ("ten  men", "10 men"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("Mr. Smith", "mr smith"),
        ("coca-cola", "coca cola"),
        ("this - that", "this that"),
        ("a/b (c)", "b c"),  # / becomes a blank and so a an article; ( stands beside a blank and goes
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("yall'll", "y'all'll"),
        ("bob's car", "bob 's car"),
        ("what?", "what"),
        ("line\none\ttab", "line 1 tab"),
        ("an apple, a pear", "apple pear"),
        ("'twas", "'twas"),
        ("twas", "'twas"),
        ("", ""),
    ],
)
def test_normal_form(answer, normal):
    assert normalize(answer) == normal


def leave_one_out(answer, people):
    """The definition, spelled out: ten panels of nine."""
    panels = itertools.combinations(people, len(people) - 1)
    return sum(min(1, panel.count(answer) / 3) for panel in panels) / len(people)


def test_vqa_accuracy_by_hand_and_by_definition():
    # 10 people; k of them agree: k = 1: 9/10 panels hold 1 → 0.3; 2: .6; 3: 7 panels of 3, 3 of 2 → 0.9; 4: 1
    for count, value in enumerate([0, 0.3, 0.6, 0.9, 1, 1]):
        people = ["red"] * count + [f"other{n}" for n in range(10 - count)]
        assert vqa_accuracy("Red.", people) == pytest.approx(value)
    rng = random.Random(0)
    for _ in range(200):
        people = rng.choices(["red", "blue", "green", "2"], k=10)
        answer = rng.choice(["red", "blue", "green", "2", "black"])
        assert vqa_accuracy(answer, people) == pytest.approx(leave_one_out(answer, people))


def test_textvqa_counts_blank_answers():
    records = [answered(make_record("textvqa", n, "q", "i.jpg", ["yes"] * 10), t) for n, t in enumerate(["Yes", " "])]
    result = TextVQA().score(records)
    assert (chief(result), result.num_malformed) == (0.5, 1)
    assert result.scores[0].stderr == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is not", False),
        ("There is not. Yes.", False),
        ("Yes. There is no doubt.", True),
        ("NO", True),  # the protocol knows No and no
        ("Nothing", True),
        ("", True),
        ("No\nindeed", True),  # split at blanks alone
    ],
)
def test_pope_reading(answer, yes):
    assert says_yes(answer) is yes


def test_pope_figures_by_hand():
    # said yes: 3, of them right 2; is yes: 4 → precision 2/3, recall 1/2, F1 4/7; right 2 + 1 of 6
    pairs = [(True, True), (True, True), (True, False), (False, True), (False, True), (False, False)]
    got = ratios(pairs)
    assert got["precision"] == pytest.approx(2 / 3)
    assert got["recall"] == pytest.approx(1 / 2)
    assert got["f1"] == pytest.approx(4 / 7)
    assert got["accuracy"] == pytest.approx(1 / 2)
    assert got["yes_ratio"] == pytest.approx(1 / 2)
    assert ratios([(False, False)])["f1"] == 0


def test_pope_is_the_mean_over_splits():
    def split(name, answers):
        return [answered(make_record("pope", n, "q", "i", t, category=name), a) for n, (t, a) in enumerate(answers)]

    right = split("random", [("yes", "Yes"), ("no", "No")])
    worse = split("popular", [("yes", "Yes"), ("no", "Yes"), ("no", "maybe")])  # F1: 2·1/(3+1) = 1/2
    result = Pope().score([*right, *worse])
    assert figure(result, "f1") == pytest.approx(0.75)
    assert figure(result, "accuracy") == pytest.approx((1 + 1 / 3) / 2)
    assert result.groups["popular"]["num_samples"] == 3
    assert result.num_malformed == 1


@pytest.mark.skipif(not REAL_POPE.exists(), reason="the published POPE questions are not beside this checkout")
def test_the_published_pope_questions(tmp_path):
    rows = [json.loads(line) for line in REAL_POPE.read_text().splitlines()]
    for split in ("random", "popular", "adversarial"):
        path = tmp_path / "pope" / "coco" / f"coco_pope_{split}.json"
        dump(path.with_suffix(".jsonl"), rows).rename(path)
    picture(tmp_path / "pope" / "val2014" / rows[0]["image"])
    records = Pope().questions(tmp_path, tmp_path / "x").records
    assert len(records) == 900
    assert records[0]["conversations"][0]["value"] == (
        "<image>\nIs there a snowboard in the image?\nAnswer the question using a single word or phrase."
    )
    rng = random.Random(1)
    said = [rng.random() < 0.6 for _ in rows]
    answers = [answered(record, "Yes" if yes else "No") for record, yes in zip(records, said * 3, strict=True)]
    true = [row["label"] == "yes" for row in rows]
    hits = len([1 for s, t in zip(said, true, strict=True) if s and t])
    precision, recall = hits / said.count(True), hits / true.count(True)
    result = Pope().score(answers)
    assert true.count(True) == 150
    assert figure(result, "f1") == pytest.approx(2 * precision * recall / (precision + recall))
    assert figure(result, "precision") == pytest.approx(precision)
    assert figure(result, "yes_ratio") == pytest.approx(said.count(True) / 300)


@pytest.mark.skipif(not REAL_COCO.exists(), reason="the published LLaVA-Bench files are not beside this checkout")
def test_the_published_llava_bench_questions(tmp_path):
    folder = tmp_path / "llava-bench-coco"
    shutil.copytree(REAL_COCO, folder)
    rows = [json.loads(line) for line in (folder / "qa90_questions.jsonl").read_text().splitlines()]
    for image in {row["image"] for row in rows}:
        picture(folder / "val2014" / f"COCO_val2014_{image}")
    made = BENCHMARKS["llava_bench_coco"].questions(tmp_path, tmp_path / "x")
    assert Counter(record["category"] for record in made.records) == {"conv": 30, "detail": 30, "complex": 30}
    assert made.records[0]["conversations"][0]["value"] == f"<image>\n{rows[0]['text']}"
    assert "black and brown" in made.records[0]["conversations"][1]["value"]
    assert all((made.image_folder / record["image"]).exists() for record in made.records)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes", "yes"),
        ("No.", "no"),
        ("yes it is", "yes"),
        ("Not so", "no"),
        ("I say yes", None),
        ("", None),
        ("Y", None),
    ],
)
def test_mme_reading(answer, read):
    assert read_mme(answer) == read


def test_mme_by_hand():
    said = {  # image → two answers; the truth is Yes, No
        ("existence", "1"): ("Yes", "No"),
        ("existence", "2"): ("Yes", "Yes"),
        ("OCR", "1"): ("No", "No"),
        ("code_reasoning", "1"): ("Yes", "what"),
    }
    records = [
        answered(make_record("mme", f"{image}{n}", "q", f"{category}/{image}", truth, category=category), answer)
        for (category, image), answers in said.items()
        for n, (truth, answer) in enumerate(zip(("yes", "no"), answers, strict=True))
    ]
    result = Mme().score(records)
    # existence: acc 3/4, acc+ 1/2 → 125; OCR: 1/2, 0 → 50; code_reasoning: 1/2, 0 → 50
    assert figure(result, "perception") == pytest.approx(175)
    assert figure(result, "cognition") == pytest.approx(50)
    assert result.groups["existence"]["score"] == pytest.approx(125)
    assert result.num_malformed == 1


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" B ", "B"),
        ("B. New Hampshire", "B"),
        ("B.", ""),
        ("B) text", ""),
        ("I think so. The answer is C.", "C"),
        ("I. The answer is C.", "C"),
        ("The answer is D because", "D"),
        ("The answer is D", ""),  # the official pattern wants a character after the letter
        ("The answer is D\n", ""),
        ("The answer is Blue", "B"),  # and asks no more of it than that
        ("The answer is blue", ""),
        ("The answer is F.", ""),
        ("The answer is A. The answer is B.", ""),
        ("The answer is A. The answer is A.", ""),
        ("A. x. The answer is B.", "A"),
        ("b", ""),
        ("A\nbecause", ""),
        ("A. ", ""),
        ("AB", ""),
        ("", ""),
    ],
)
def test_scienceqa_reading(answer, letter):
    """By LLaVA's eval_science_qa.py, worked through by hand."""
    assert read_letter(answer) == letter


def test_scienceqa_by_hand():
    rows = [("1.png", "B", "B"), ("2.png", "A", "B"), (None, "A", "A. x"), (None, "C", "C"), (None, "D", "?")]
    records = [
        answered(make_record("sqa", n, "q", image, truth, category="natural science"), said)
        for n, (image, truth, said) in enumerate(rows)
    ]
    result = ScienceQA().score(records)
    assert figure(result, "image_accuracy") == pytest.approx(1 / 2)
    assert figure(result, "accuracy") == pytest.approx(3 / 5)
    assert result.num_malformed == 1


OPTIONS = {"A": "the left one", "B": "the right one", "C": "both"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. the right one", "B"),
        ("B：右", "B"),
        ("The answer is C", "C"),
        ("The answer is A.", "A"),
        ("The correct answer is A because it stands there.", "A"),
        ("A is the correct answer", "A"),
        ("Answer: A", "A"),
        ("A. It stands on this side", "A"),
        ("It is a dog", ""),
        ("I see it. A dog is there", ""),
        ("Here: A dog and a cat", ""),
        ("A", "A"),
        ("A cat is the right one", "B"),  # A is an article here, the text is B's
        ("The Left One", "A"),
        ("the left one or the right one", ""),
        ("A or B", ""),
        ("D", ""),
        ("", ""),
        ("both " * 40, ""),
    ],
)
def test_mmbench_reading(answer, letter):
    assert read_choice(answer, OPTIONS) == letter


def test_mmbench_circular_by_hand():
    def row(index, truth, said, category="logic"):
        more = {"category": category, "options": OPTIONS, "row": {}}
        return answered(make_record("mmbench", index, "q", "i.jpg", truth, **more), said)

    answers = [
        *(row(7, "A", "A"), row(1_000_007, "B", "B"), row(2_000_007, "C", "C.")),  # right in all copies
        *(row(8, "A", "A", "vision"), row(1_000_008, "B", "A", "vision")),  # one copy wrong
        row(9, "A", "?"),
    ]
    result = MMBench().score(answers)
    assert figure(result, "accuracy") == pytest.approx(1 / 3)
    assert figure(result, "plain_accuracy") == pytest.approx(2 / 3)
    assert result.groups["logic"] == {"accuracy": 0.5, "num_samples": 2}
    assert result.num_malformed == 1
    assert MMBench().score([row(7, "", "A")]) is None  # a test table, without truths


def test_seed_wants_the_letter_alone():
    said = ["A", "A.", "B", "a", " A", "A cat"]
    records = [answered(make_record("seed", n, "q", "i", "A", category="x"), s) for n, s in enumerate(said)]
    result = SeedBench().score(records)
    assert (chief(result), result.num_malformed) == (pytest.approx(1 / 6), 4)
    assert result.scores[0].metric == "accuracy"  # LLaVA's goes first
    assert figure(result, "first_letter_accuracy") == pytest.approx(3 / 6)  # the paper's script: A, A., A cat


def test_gqa_by_hand():
    said = [("no", "No."), ("man", "the man"), ("left", "left..."), ("x", "")]
    records = [answered(make_record("gqa", str(n), "q", "i", t, category="open"), s) for n, (t, s) in enumerate(said)]
    result = Gqa().score(records)
    assert (chief(result), result.num_malformed) == (0.5, 1)
    assert Gqa().submission(records, Path()).content[0] == {"questionId": "0", "prediction": "no"}


def test_right_answers_have_the_highest_scores(data, tmp_path):
    """Every benchmark that scores itself, from its official files."""
    highest = {"mme": 2000.0}
    for name, benchmark in BENCHMARKS.items():
        records = benchmark.questions(data, tmp_path / name).records
        for record in records:
            truth = record["conversations"][1]["value"]
            answered(record, truth if isinstance(truth, str) else truth[0])
        result = benchmark.score(records)
        if result is not None:
            assert chief(result) == pytest.approx(highest.get(name, 1.0)), name
            assert result.num_malformed == 0, name


def test_standard_error_of_a_mean():
    score = mean_score("accuracy", [1.0, 0.0, 1.0, 1.0])
    assert score.value == 0.75
    assert score.stderr == pytest.approx(0.25)  # Σ(v − m)² = 0.75; ÷ (n − 1) ÷ n = 1/16
    assert mean_score("accuracy", [1.0]).stderr is None


def test_prompts_end_as_the_paper_says(data, tmp_path):
    """Table 10."""
    short = "Answer the question using a single word or phrase."
    letter = "Answer with the option's letter from the given choices directly."
    ends = dict.fromkeys(("textvqa", "pope", "mme", "vqav2", "gqa", "vizwiz"), short)
    ends |= dict.fromkeys(("sqa", "mmbench", "seed"), letter)
    for name, benchmark in BENCHMARKS.items():
        for record in benchmark.questions(data, tmp_path / name).records:
            lines = record["conversations"][0]["value"].split("\n")
            assert (lines[0] == "<image>") == ("image" in record)
            if name in ends:
                assert lines[-1] == ends[name], name
            else:
                assert not re.search(r"^Answer", lines[-1]), name
