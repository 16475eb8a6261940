"""Metrics against independent oracles (pycocoevalcap, nltk, brute force) over random and hostile strings."""

import math
import shutil

import nltk.translate.gleu_score as nltk_gleu
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.answers import Sample
from eval.errors import EvaluationError
from eval.metrics import iou, load_metric, parse_box
from eval.scores import Column


def samples(*pairs):
    """(references, prediction) pairs as samples."""
    return [
        Sample(str(index), "?", (truth,) if isinstance(truth, str) else tuple(truth), prediction, {})
        for index, (truth, prediction) in enumerate(pairs)
    ]


def score(metric, *pairs):
    return load_metric(metric).score(samples(*pairs))


words = st.lists(st.sampled_from(["a", "the", "dog", "Dog", "runs", ".", "on", "grass,"]), min_size=1, max_size=9)
sentences = words.map(" ".join)
hostile = st.one_of(sentences, st.text(max_size=20), st.sampled_from(["", " ", "\n", "\x00", "ß\u2028İ", "[1,2,3,4]"]))
truths = st.one_of(sentences, st.text(min_size=1, max_size=20).filter(str.strip))
pairs = st.lists(st.tuples(st.lists(truths, min_size=1, max_size=3), hostile), min_size=2, max_size=6)


# CIDEr ----------------------------------------------------------------------------------------------------------


def cider_by_hand(pairs):
    """CIDEr-D from its definition: tf-idf vectors of n-grams, clipped cosine, Gaussian length penalty, times 10."""

    def grams(text, n):
        tokens = text.split()
        found = {}
        for start in range(len(tokens) - n + 1):
            key = tuple(tokens[start : start + n])
            found[key] = found.get(key, 0) + 1
        return found

    def idf(gram):
        documents = sum(any(gram in grams(text, len(gram)) for text in references) for references, _ in pairs)
        return math.log(len(pairs)) - math.log(max(1, documents))

    results = []
    for references, prediction in pairs:
        total = 0.0
        for reference in references:
            gap = max(0, len(prediction.split()) - 1) - max(0, len(reference.split()) - 1)
            for n in range(1, 5):
                a = {g: c * idf(g) for g, c in grams(prediction, n).items()}
                b = {g: c * idf(g) for g, c in grams(reference, n).items()}
                norms = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
                dot = sum(min(value, b[g]) * b[g] for g, value in a.items() if g in b)
                total += (dot / norms if norms else 0.0) * math.exp(-(gap**2) / 72) / 4
        results.append(10 * total / len(references))
    return results


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_cider_equals_its_definition_and_pycocoevalcap(answers):
    from pycocoevalcap.cider.cider import Cider

    column = score("cider", *answers).columns[0]
    references = {i: list(truth) for i, (truth, _) in enumerate(answers)}
    predictions = {i: [prediction] for i, (_, prediction) in enumerate(answers)}
    mean, values = Cider().compute_score(references, predictions)
    assert column.values == list(values)
    assert column.mean() == pytest.approx(mean, abs=1e-12)
    assert column.values == pytest.approx(cider_by_hand(answers), abs=1e-6)


def test_cider_keeps_case_and_punctuation():
    """The paper's variant: whitespace tokens as they are."""
    answers = [("a black dog runs", "A Black Dog Runs"), ("two cats sleep here", "two cats sleep here")]
    assert score("cider", *answers).columns[0].values == [0.0, pytest.approx(10.0)]


@pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer needs Java")
def test_cider_on_ptb_tokens_drops_case_and_punctuation():
    answers = [
        ("a black dog\nruns", "A Black, Dog Runs."),
        ("two cats sleep here", " "),
        ("so it is now", "so it\u2028is now"),
        ("we see a house", ""),
    ]
    scored = score("cider_ptb", *answers)
    assert scored.columns[0].metric == "cider_ptb"
    assert scored.columns[0].values == pytest.approx([10.0, 0.0, 10.0, 0.0])
    assert scored.malformed == [False, True, False, True]


def test_cider_on_ptb_tokens_says_that_java_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EvaluationError, match="needs Java"):
        load_metric("cider_ptb")


# Exact match ----------------------------------------------------------------------------------------------------


def same_answer(truth, prediction):
    """Exact match, written the long way round."""
    sides = []
    for text in (truth, prediction):
        text = text.strip().lower()
        sides.append(text[:-1] if text[-1:] == "." else text)
    return sides[0] == sides[1]


@given(pairs)
@example([(["Yes."], "yes"), (["a.."], "a."), (["."], "."), (["x"], "x..")])
@settings(max_examples=100, deadline=None)
def test_exact_match_equals_its_oracle(answers):
    scored = score("em", *answers)
    expected = [float(any(same_answer(t, p) for t in truth) and p.strip() != "") for truth, p in answers]
    assert scored.columns[0].values == expected
    assert scored.malformed == [not prediction.strip() for _, prediction in answers]


@pytest.mark.parametrize(
    ("truth", "prediction", "hit"),
    [("Yes", " yes. ", 1), ("yes.", "Yes", 1), ("yes", "yes..", 0), ("no", "yes", 0), (".", "", 0), ("3 .", "3 ", 0)],
)
def test_exact_match_by_hand(truth, prediction, hit):
    assert score("em", (truth, prediction)).columns[0].values == [hit]


# Grounding ------------------------------------------------------------------------------------------------------

corner = st.integers(0, 11)
boxes = st.tuples(corner, corner, corner, corner).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 1, max(c[1], c[3]) + 1)
)


@given(boxes, boxes)
def test_iou_equals_counting_cells(a, b):
    cells = [{(x, y) for x in range(c[0], c[2]) for y in range(c[1], c[3])} for c in (a, b)]
    assert iou(a, b) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))


@given(boxes, boxes, st.floats(0.01, 0.05))
def test_scored_boxes_equal_counting_cells(a, b, unit):
    """The same through texts, normalised."""
    text = ["[" + ", ".join(str(corner * unit) for corner in box) + "]" for box in (a, b)]
    scored = score("iou", (text[0], f"It is at {text[1]}."))
    cells = [{(x, y) for x in range(c[0], c[2]) for y in range(c[1], c[3])} for c in (a, b)]
    share = len(cells[0] & cells[1]) / len(cells[0] | cells[1])
    assert scored.columns[1].values == [pytest.approx(share)]
    if abs(share - 0.5) > 1e-6:
        assert scored.columns[0].values == [float(share > 0.5)]
    assert scored.malformed == [False]


def test_iou_of_exactly_one_half_does_not_count():
    assert [c.values for c in score("iou", ("[0,0,0.5,1]", "[0,0,1,1]")).columns] == [[0.0], [0.5]]


@pytest.mark.parametrize(
    ("truth", "answer", "hit"),
    [
        ("[0.1, 0.1, 0.2, 0.3]", "[0.1, 0.1, 0.2, 0.2]", 0),  # 1/2, which comes out above it in binary
        ("[0.1, 0.1, 0.2, 0.3]", "[0.1, 0.1, 0.2, 0.2001]", 1),
        ("[0.1, 0.1, 0.4, 0.4]", "[0.1, 0.1, 0.7, 0.4]", 0),
        ("[0.1, 0.1, 0.4, 0.4]", "[0.1, 0.1, 0.6999, 0.4]", 1),
    ],
)
def test_one_half_is_decided_on_decimals_as_written(truth, answer, hit):
    assert score("iou", (truth, answer)).columns[0].values == [hit]


decimal_box = st.tuples(*[st.integers(0, 20)] * 4).filter(lambda c: c[0] < c[2] and c[1] < c[3])


@given(decimal_box, decimal_box)
def test_hits_equal_those_of_whole_numbers(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    text = ["[" + ", ".join(f"{corner / 20:.2f}" for corner in box) + "]" for box in (a, b)]
    assert score("iou", (text[0], text[1])).columns[0].values == [2 * common > areas - common]


@pytest.mark.parametrize(
    "prediction",
    [
        "",
        "a dog",
        "[0.1, 0.2]",
        "[0.5, 0.5, 0.1, 0.1]",  # swapped corners
        "[0.1, 0.1, 0.1, 0.5]",  # no area
        "[nan, 0.1, 0.5, 0.5]",
        "[NaN, NaN, NaN, NaN]",
        "[0.1, 0.1, inf, 0.5]",
        "[0.1, 0.1, 1e999, 0.5]",
        "[0, 0, 1e300, 1e300]",  # no finite area
        "[0, 0, 1e-300, 1e-300]",  # an area that is 0 in floating point
        "[0.1, 0.1, 0.5, 0.5",  # unclosed
        "0.1, 0.1, 0.5, 0.5]",
        "[0.1, 0.1, 0.5, 0.5, 0.9]",
        "[0.1 0.1 0.5 0.5]",
        "[0.1, 0.1, 0.5.5, 0.5]",
        "[10, 10, 50, 50]",  # pixels
        "[" * 2000 + "0.1," * 2000,
        "[" + "1" * 100_000,
    ],
)
def test_malformed_boxes_score_0_and_are_counted(prediction):
    scored = score("iou", ("[0.1, 0.1, 0.5, 0.5]", prediction))
    assert [column.values for column in scored.columns] == [[0.0], [0.0]]
    assert scored.malformed == [True]


def test_scales_must_agree():
    assert score("iou", ("[10, 10, 50, 50]", "[0.1, 0.1, 0.5, 0.5]")).malformed == [True]
    assert score("iou", ("[10, 10, 50, 50]", "[10, 10, 50, 50]")).columns[1].values == [1.0]
    overshoot = score("iou", ("[0.5, 0, 1, 1]", "[0.5, 0, 1.02, 1]"))  # a little beyond the edge is still normalised
    assert overshoot.malformed == [False]
    assert overshoot.columns[1].values[0] == pytest.approx(1 / 1.04)


@pytest.mark.parametrize(
    ("truth", "answer", "value"),
    [
        ("[0.5, 0, 1.0001, 1]", "[0.5, 0, 1, 1]", 0.5 / 0.5001),  # a truth rounded to beyond the edge is no pixels
        ("[0.5, 0, 1.999, 1]", "[0.5, 0, 1, 1]", 0.5 / 1.499),
        ("[1, 0, 2, 2]", "[1, 0, 2, 1]", 0.5),
        ("[1, 0, 2, 2]", "[0.5, 0, 1, 1]", None),  # from here on pixels
        ("[0, 0, 1, 1]", "[0, 0, 2, 1]", 0.5),
        ("[0, 0, 1, 1]", "[0, 0, 2.01, 1]", None),
    ],
)
def test_where_fractions_end_and_pixels_begin(truth, answer, value):
    scored = score("iou", (truth, answer))
    assert scored.malformed == [value is None]
    assert scored.columns[1].values == [pytest.approx(value or 0.0)]


@pytest.mark.parametrize("truth", ["[0.5, 0.5, 0.5, 0.9]", "[0.5, 0.5, 0.1, 0.9]", "[0, 0, 1e300, 1e300]"])
def test_a_truth_without_area_is_one_records_fault(truth):
    good = "[0, 0, 1, 1]"
    scored = score("iou", (good, good), (truth, truth), (truth, good), (good, good))
    assert [column.values for column in scored.columns] == [[1, 0, 0, 1]] * 2
    assert scored.malformed == [False, True, True, False]
    assert [column.details for column in scored.columns] == [{"num_unfit_truths": 2}] * 2
    assert len(scored.notes) == 1
    assert "swapped): 2, which score 0" in scored.notes[0]
    assert "id 1, 2;" in scored.notes[0]


def test_a_box_without_area_beside_other_references_is_left_out():
    scored = score("iou", (["[0.5, 0, 0.5, 1]", "[0, 0, 1, 1]"], "[0, 0, 1, 1]"))
    assert (scored.columns[0].values, scored.malformed, scored.notes) == ([1.0], [False], [])


def test_a_truth_that_is_no_box_is_an_error():
    with pytest.raises(EvaluationError, match="record id 1: the truth 'left' is no box"):
        score("iou", ("[0, 0, 1, 1]", "[0, 0, 1, 1]"), ("left", "[0, 0, 1, 1]"))
    with pytest.raises(EvaluationError, match="record id 0: its truth is a box without area, and so is every other"):
        score("iou", ("[1, 0, 0, 1]", "[0, 0, 1, 1]"))


@given(st.text(alphabet="[]0123456789.,-+eE nainf", max_size=40))
def test_parsing_boxes_never_crashes(text):
    box = parse_box(text)
    assert box is None or (box[0] < box[2] and box[1] < box[3])


# GLEU -----------------------------------------------------------------------------------------------------------


@given(pairs)
@settings(max_examples=150, deadline=None)
def test_gleu_equals_nltk(answers):
    column = score("gleu", *answers).columns[0]
    references = [[text.split() for text in truth] for truth, _ in answers]
    predictions = [prediction.split() for _, prediction in answers]
    assert column.mean() == pytest.approx(nltk_gleu.corpus_gleu(references, predictions), abs=1e-12)
    for value, truth, prediction in zip(column.values, references, predictions, strict=True):
        assert value == pytest.approx(nltk_gleu.sentence_gleu(truth, prediction), abs=1e-12)


# All ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cider", "em", "gleu"])
def test_empty_answers_score_0_and_are_counted(metric):
    scored = score(metric, ("a b c d", ""), ("e f g h", " \n"), ("i j k l", "i j k l"))
    assert scored.malformed == [True, True, False]
    assert scored.columns[0].values[:2] == [0.0, 0.0]
    assert scored.columns[0].values[2] > 0


def test_an_unknown_metric_is_an_error_that_lists_the_known():
    with pytest.raises(EvaluationError, match="unknown metric 'bleu'; known: cider, cider_ptb, em, iou, gleu, judge"):
        load_metric("bleu")


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_standard_errors_equal_numpy(values):
    import numpy as np

    column = Column("x", "x", values)
    assert column.mean() == pytest.approx(np.mean(values))
    assert column.stderr() == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5, abs=1e-9)
    weighted = Column("x", "x", values, [2.0] * len(values))
    assert weighted.stderr() == pytest.approx(column.stderr(), abs=1e-9)


def test_the_standard_error_of_a_ratio_is_that_of_a_bootstrap():
    import numpy as np

    rng = np.random.default_rng(0)
    weights = rng.integers(1, 30, 500).astype(float)
    values = rng.uniform(size=500) * weights / 30
    column = Column("x", "x", values.tolist(), weights.tolist())
    picks = rng.integers(500, size=(4000, 500))
    draws = (values * weights)[picks].sum(axis=1) / weights[picks].sum(axis=1)
    assert column.stderr() == pytest.approx(draws.std(), rel=0.05)


def test_a_column_whose_samples_have_no_weight_says_nothing():
    column = Column("x", "x", [1.0, 0.0], [0.0, 0.0])
    assert (column.mean(), column.stderr()) == (0.0, 0.0)
