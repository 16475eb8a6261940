"""Names, groups, weights and method of a run."""

import json
from types import SimpleNamespace

import pytest

from llava.train.arguments import UsageError
from llava.train.tasks import resolve_tasks

NAMES = ["A", "B", "C", "D"]
GROUPS = json.dumps({"x": ["A", "C"], "y": ["B"]})


def resolve(weights=(), names=(), groups=None, num=None, method=None):
    data = SimpleNamespace(visatb_weights=list(weights), task_names=list(names), task_groups=groups, num_tasks=num)
    training = SimpleNamespace(weight_method=method)
    return resolve_tasks(data, training)


@pytest.fixture
def weights_file(tmp_path):
    def write(tasks, weights):
        file = tmp_path / "weights.json"
        file.write_text(json.dumps({"tasks": tasks, "weights": weights, "temperature": 0.5}))
        return str(file)

    return write


def test_weights_given_mean_visatb_and_none_given_ew():
    assert resolve(["1", "2", "0", "0.5"], NAMES).method == "VisATB"
    assert resolve(["1 2,0 0.5"], NAMES).weights == (1.0, 2.0, 0.0, 0.5)
    assert resolve([], NAMES).method == "EW"
    assert resolve([], NAMES, method="TLA").method == "TLA"
    assert resolve([], NAMES).task_weights() is None


def test_a_weights_file_travels_by_name(weights_file):
    file = weights_file(["A", "B"], {"B": 2.0, "A": 1.0, "fixed": 3.0})
    assert resolve([file]).task_weights() == {"A": 1.0, "B": 2.0, "fixed": 3.0}
    ordered = resolve([file], ["fixed", "B", "A"], num=3)
    assert (ordered.names, ordered.weights) == (("fixed", "B", "A"), (3.0, 2.0, 1.0))


def test_groups_share_a_unit_and_its_weight(weights_file):
    table = resolve(["1", "2", "1", "4"], NAMES, GROUPS)
    assert (table.unit_names, table.units, table.weights) == (("x", "y", "D"), (0, 1, 0, 2), (1.0, 2.0, 4.0))
    assert resolve(["1", "2", "4"], NAMES, GROUPS).weights == (1.0, 2.0, 4.0)  # a number per group
    by_group = weights_file(["x", "y"], {"x": 0.5, "y": 1.5, "D": 1.0})
    assert resolve([by_group], NAMES, GROUPS).task_weights() == {"A": 0.5, "B": 1.5, "C": 0.5, "D": 1.0}
    assert resolve([by_group], groups=GROUPS).names == ("A", "C", "B", "D")
    assert resolve([], NAMES, GROUPS, method="DWA").units == (0, 1, 0, 2)


def test_tasks_come_from_the_data_where_none_are_named():
    table = resolve()
    assert table.names == ()
    assert table.named_as(["q", "p"]).units == (0, 1)
    with pytest.raises(UsageError, match="num_tasks 3, but there are 2 tasks"):
        table.named_as(["q", "p"], expected=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": ["1", "2"]}, "bare numbers need --task_names"),
        ({"weights": ["1", "2"], "names": NAMES}, "2 weights for 4 tasks"),
        ({"weights": ["1", "2", "3", "-4"], "names": NAMES}, "-4.0 is not a weight"),
        ({"weights": ["1", "2", "3", "nan"], "names": NAMES}, "nan is not a weight"),
        ({"weights": ["1", "2", "3", "inf"], "names": NAMES}, "inf is not a weight"),
        ({"weights": ["0", "0", "0", "0"], "names": NAMES}, "all weights are 0"),
        ({"weights": ["1", "x", "3", "4"], "names": NAMES}, "must be numbers or one weights file"),
        ({"weights": ["1", "2", "3", "4"], "names": NAMES, "method": "TLA"}, "exclude each other"),
        ({"weights": ["1", "2", "3", "4"], "names": NAMES, "method": "EW"}, "exclude each other"),
        ({"names": NAMES, "method": "VisATB"}, "needs --visatb_weights"),
        ({"weights": ["nowhere.json"], "names": NAMES}, "nowhere.json: No such file"),
        ({"names": ["A", "B", "A"]}, "A named more than once"),
        ({"names": NAMES, "num": 5}, "num_tasks 5, but there are 4 tasks"),
        ({"names": NAMES, "groups": '{"x": ["Z"]}'}, "Z of group x not among the tasks"),
        ({"names": NAMES, "groups": '{"x": ["A"], "y": ["A"]}'}, "A in more than one group"),
        ({"names": NAMES, "groups": '{"B": ["A"]}'}, "both a group and a task"),
        ({"names": NAMES, "groups": '{"x": []}'}, "must be a list of task names"),
        ({"names": NAMES, "groups": '{"x": ['}, "not valid JSON"),
        ({"groups": GROUPS}, "needs --task_names"),
        ({"names": NAMES, "groups": GROUPS, "weights": ["1", "2", "3", "4"]}, "must share one weight"),
    ],
)
def test_contradictions_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        resolve(**arguments)


def test_weights_files_that_do_not_fit_are_named(weights_file):
    with pytest.raises(UsageError, match=r"missing for \['C', 'D'\], not among the tasks: \[\]"):
        resolve([weights_file(["A", "B"], {"A": 1.0, "B": 1.0})], NAMES)
    with pytest.raises(UsageError, match="must hold"):
        resolve([weights_file(["A", "B"], {"A": 1.0})])
    with pytest.raises(UsageError, match="is not a number"):
        resolve([weights_file(["A"], {"A": "1"})])
    with pytest.raises(UsageError, match="all weights are 0"):
        resolve([weights_file(["A"], {"A": 0})])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"tasks": ["A"], "weights": {"A": 1' + b"0" * 400 + b"}}", "the weight of A is too large"),
        (b'{"tasks": ["A"], "weights": {"A": 1' + b"0" * 5000 + b"}}", "not valid JSON"),
        (b'{"tasks": ["A"], "weights": {"A": 1e999}}', "1e999, a number beyond every float"),
        (b'{"tasks": [["A"]], "weights": {"A": 1}}', "must hold"),
        ('{"tasks": ["é"], "weights": {"é": 1}}'.encode("latin-1"), "not UTF-8 text"),
        (b'{"tasks": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_weights_files_made_to_choke_on_end_in_a_message(tmp_path, content, message):
    file = tmp_path / "weights.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        resolve([str(file)])


def test_names_that_no_file_can_have():
    assert resolve([" ".join(["1.0"] * 400)], [f"t{number}" for number in range(400)]).method == "VisATB"
    with pytest.raises(UsageError, match="cannot read"):
        resolve(["a\0b.json"])
