"""The weights file has one reader, for training, conversion and the report."""

import json

import pytest

from eval.errors import EvaluationError
from eval.weights import COMPONENTS, WEIGHT_RANGE, read_computed, read_weights

WEIGHTS = {
    "tasks": ["a", "b"],
    "weights": {"a": 1.5, "b": 1, "fixed": 1.0},
    "components": {part: {"a": 1.0, "b": 1.0} for part in COMPONENTS},
    "mean_contributions": {part: {"a": 0.1, "b": 0.2} for part in ("out", "in")},
    "contributions": [[0.0, 0.1], [0.2, 0.0]],
    "difficulties": {"a": 0.1, "b": 0.2},
}


def write(folder, **changes):
    path = folder / "weights.json"
    path.write_text(json.dumps({**WEIGHTS, **changes}))
    return path


def test_what_was_written_is_read(tmp_path):
    assert read_computed(write(tmp_path)) == WEIGHTS
    by_hand = tmp_path / "by_hand.json"
    by_hand.write_text(json.dumps({"tasks": ["a"], "weights": {"a": 2}}))
    assert read_weights(by_hand)["weights"] == {"a": 2}
    with pytest.raises(EvaluationError, match="not all of the same units"):
        read_computed(by_hand)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["a", "z"]}, "must hold"),
        ({"weights": [1, 2]}, "must hold"),
        ({"weights": {"a": True, "b": 1}}, "the weight of a is not a number"),
        ({"weights": {"a": -1, "b": 1}}, "-1 is not a weight"),
        ({"weights": {"a": float("nan"), "b": 1}}, "holds NaN"),
        ({"components": {}}, "not all of the same units"),
        ({"contributions": [[0.0]]}, "not all of the same units"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(EvaluationError, match=message) as raised:
        read_computed(path)
    assert str(path) in str(raised.value)


def test_the_file_that_can_be_copied_alone_has_the_same_constants():
    import weighting_visatb

    assert weighting_visatb.COMPONENTS == COMPONENTS
    assert weighting_visatb.WEIGHT_RANGE == WEIGHT_RANGE
