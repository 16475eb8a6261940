"""The experiment file: what is refused, with file and line, and what is filled in."""

import time
from pathlib import Path

import pytest

from llava.data.errors import DataError
from tests.workflow.world import write_experiment
from visatb.experiment.read import load_experiment
from visatb.experiment.records import write_records
from visatb.experiment.schema import round_to_count
from visatb.experiment.yaml_lines import ExperimentError

GOOD = """\
model: {path: base}
tasks:
  vqa:
    train: vqa.json
    val: vqa_val.json
    test: vqa_test.json
    metric: em
  caption:
    train: [a.json, b.json]
    val: caption_val.json
    test: caption_test.json
    metric: [cider, gleu]
training:
  learning_rate: 2e-4
"""


def load(folder: Path, text: str):
    path = folder / "experiment.yaml"
    path.write_text(text)
    return load_experiment(path)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("    metric: em", "    metrik: em", 7, ["tasks.vqa.metrik", "did you mean metric"]),
        ("    metric: em", "    metric: emm", 7, ["unknown metric 'emm'", "cider"]),
        ("    val: vqa_val.json\n", "", 3, ["tasks.vqa", "val is missing"]),
        ("    test: vqa_test.json\n", "", 3, ["test is missing"]),
        ("  learning_rate: 2e-4", "  output_dir: x", 14, ["training.output_dir", "the workflow itself"]),
        ("  learning_rate: 2e-4", "  weight_method: x", 14, ["training.weight_method", "methods"]),
        ("training:", "subsets: {mini: 1/0}\ntraining:", 13, ["subsets.mini", "not a rate"]),
        ("training:", "subsets: {mini: 0.5, large: 0.25}\ntraining:", 13, ["smaller than the large"]),
        ("training:", "methods: [EW, EW]\ntraining:", 13, ["more than once"]),
        ("training:", "methods: [UW]\ntraining:", 13, ["methods", "UW"]),
        ("training:", "weighting: {alpha: {out: 1}}\ntraining:", 13, ["sum to 1"]),
        ("training:", "weighting: {form: simple, difficulty: precise}\ntraining:", 13, ["simple form"]),
        ("training:", "weighting: {shrink: auto, bootstrap: 0}\ntraining:", 13, ["weighting.shrink", "bootstrap"]),
        ("metric: em", "metric: [em, loss]", 7, ["tasks.vqa.metric", "weighting: {validation: loss}"]),
        ("training:", "weighting: {apply: sampling}\nmethods: [EW]\ntraining:", 13, ["apply", "not among the methods"]),
        (
            "training:",
            "weighting: {apply: sampling}\ntraining:\n  group_by_modality_length: true",
            13,
            ["weighting.apply", "leave group_by_modality_length out"],
        ),
        ("    train: vqa.json", "    train: vqa.json\n    guard: 0.1", 4, ["is a guard", "leave train out"]),
        ("training:", "guards: {a: {}}\ntraining:", 13, ["stands among the tasks"]),
        ("training:", "groups: auto\ntraining:", 13, ["groups", "three tasks"]),
        ("training:", "groups: sometimes\ntraining:", 13, ["groups", "auto"]),
        ("  caption:\n", "  vqa:\n", 8, ["given twice"]),
        ("  caption:\n", "  VQA:\n", 8, ["share their files"]),
        ("    train: vqa.json", "    train: vqa.json\n    weight: 1.0", 6, ["training data only"]),
        ("    train: [a.json, b.json]", "    train: [vqa.json]", 9, ["more than once"]),
        ("    metric: em", "    metric: [em", 8, ["not valid YAML"]),
    ],
)
def test_errors_name_file_and_line(tmp_path, old, new, line, words):
    assert old in GOOD
    with pytest.raises(ExperimentError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    message = str(caught.value)
    assert f"experiment.yaml:{line}: " in message
    for word in words:
        assert word in message


SECRET = "hf_aSecretThatNobodyMaySee"


@pytest.mark.parametrize(
    "given",
    [
        f"training: {{hub_token: {SECRET}}}",
        f"training: {{report_to: wandb, WANDB_API_KEY: {SECRET}}}",
        f"training: {{deepspeed: {{monitor: {{password: {SECRET}}}}}}}",
        f"overrides: {{finals: {{hub_token: {SECRET}}}}}",
    ],
)
def test_secrets_are_refused_and_not_repeated(tmp_path, given):
    with pytest.raises(ExperimentError) as caught:
        load(tmp_path, GOOD.partition("training:")[0] + given + "\n")
    message = str(caught.value)
    assert "is a secret" in message
    assert "environment" in message
    assert ("HF_TOKEN" in message) == ("hub" in given)
    assert SECRET not in message


def test_arguments_that_count_tokens_are_no_secrets(tmp_path):
    given = "  include_num_input_tokens_seen: true\n  mm_use_im_patch_token: false\n  hub_token: null\n"
    with pytest.raises(ExperimentError) as caught:
        load(tmp_path, GOOD + given)
    assert "secret" not in str(caught.value)  # but that null is no value
    assert load(tmp_path, GOOD + given.replace("  hub_token: null\n", ""))


BOMB = "a: &a [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than"),
        ("tasks: &t\n  a: *t\n", "in itself"),
        ("tasks: &t [1, *t]\n", "in itself"),
        ("a: &a {k: 1}\nb: &b {<<: *b}\n", "in itself"),
        ("tasks: " + "[" * 100_000, "nested more than"),
        ("tasks: " + "[" * 60 + "]" * 60, "nested more than"),
        ("seed: 1" + "0" * 5_000, "a number of 5,001 digits"),
        ("seed: 1" + ":1" * 100_000, "a number of"),
        ("seed: 0x" + "f" * 100_000, "a number of"),
        ("seed: 1" + "0" * 400, "a number of 401 digits"),
        ("tasks: !!timestamp 2026-99-99", "no timestamp"),
        ("tasks: !!int many", "'many' is no int"),
        ("tasks: !!bool perhaps", "no bool"),
        ("tasks: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("? [a]\n: b", "must be a text"),
        ('image_folder: "a\\0b"', "NUL"),
        ('image_folder: "\\ud800"', "surrogate"),
        ("subsets: {mini: 1e999999999/3}", "finite"),
        ("subsets: {mini: 1/1e999999999}", "greater than 0"),
        ("model: {path: b, parameters: 1e999B}", "finite"),
        ("# " + "x" * (1 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_content_made_to_choke_on_ends_in_a_message_at_once(tmp_path, text, words):
    before = time.process_time()
    with pytest.raises(ExperimentError) as caught:
        load(tmp_path, text + "\n")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 4_000
    assert time.process_time() - before < 1


def test_ordinary_aliases_merges_and_dates_as_names(tmp_path):
    text = GOOD.replace("  vqa:\n", "  2024-01-31: &first\n").replace(
        "  caption:", "  other:\n    <<: *first\n    train: o.json\n  caption:"
    )
    experiment = load(tmp_path, text)
    assert list(experiment.tasks) == ["2024-01-31", "other", "caption"]
    assert experiment.tasks["other"].val == experiment.tasks["2024-01-31"].val


def test_a_name_longer_than_a_file_system_takes(tmp_path):
    assert load(tmp_path, GOOD.replace("base", "b" * 5_000)).model.path == "b" * 5_000


def test_all_errors_of_values_come_at_once(tmp_path):
    with pytest.raises(ExperimentError) as caught:
        load(tmp_path, GOOD.replace("metric: em", "metrc: em").replace("2e-4", "2e-4\nseeed: 1\nsubsets: 3"))
    assert len(str(caught.value).splitlines()) == 3


def test_one_task_is_not_enough(tmp_path):
    with pytest.raises(ExperimentError, match="at least two tasks"):
        load_experiment(write_experiment(tmp_path, {"a": {}, "b": {"weight": 1.0}}))


def test_defaults_paths_and_round_trip(tmp_path):
    experiment = load(tmp_path, GOOD)
    assert experiment.training["learning_rate"] == 2e-4
    assert experiment.training["num_train_epochs"] == 1
    assert experiment.subsets.mini == 1 / 32
    assert experiment.tasks["caption"].train == [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    copy = tmp_path / "elsewhere" / "copy.yaml"
    copy.parent.mkdir()
    copy.write_text(experiment.to_yaml())
    again = load_experiment(copy)
    assert again.model_dump() == experiment.model_dump()


def test_rates_may_be_fractions(tmp_path):
    assert load(tmp_path, GOOD + "subsets: {mini: 1/4, large: 1/2}\n").subsets.mini == 0.25


@pytest.mark.parametrize(("rate", "total", "count"), [(1 / 32, 64, 2), (1 / 32, 10, 1), (0.25, 6, 2), (1, 7, 7)])
def test_subset_sizes(rate, total, count):
    assert round_to_count(rate, total) == count


def test_half_a_surrogate_pair_is_named_with_its_record(tmp_path):
    with pytest.raises(DataError, match=r"record 'x' of task a: holds half of a surrogate pair"):
        write_records(tmp_path / "a.json", iter([{"id": "x", "task": "a", "text": "\ud800"}]))
    assert not list(tmp_path.iterdir())


def test_a_guard_stands_among_the_tasks_and_is_none_of_them(tmp_path):
    """It travels through the work folder's copy of the experiment file; a name for it twice is refused."""
    text = GOOD.replace("training:", "  calm:\n    val: calm.json\n    metric: em\n    guard: 0.01\ntraining:")
    experiment = load(tmp_path, text)
    assert list(experiment.tasks) == experiment.balanced == ["vqa", "caption"]
    assert experiment.guards["calm"].guard == 0.01
    assert experiment.questions("calm", "guard") == str(tmp_path / "calm.json")
    (tmp_path / "work").mkdir()
    assert load(tmp_path / "work", experiment.to_yaml()).guards == experiment.guards
    assert "guard:" not in load(tmp_path, GOOD).to_yaml().replace("guards:", "guard:")
    for right, wrong, said in (
        ("guard: 0.01", "guard: 0", r":16: tasks\.calm\.guard: .*greater than 0"),
        ("metric: em\n    guard", "metric: uw\n    guard", "unknown metric 'uw'"),
        ("val: calm.json\n    ", "", r"tasks\.calm.*is missing"),
    ):
        with pytest.raises(ExperimentError, match=said):
            load(tmp_path, text.replace(right, wrong))
