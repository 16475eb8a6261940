"""Answer files in, score files out: the commands, whose answers they are, and bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import eval.answers
import eval.errors
from eval import caption, caption_list, gleu, grounding, qa
from eval.cli import evaluate
from eval.collect import collect
from eval.scores import read_scores

FOLDER = Path(eval.answers.__file__).parent
COMMANDS = {"caption": caption, "caption_list": caption_list, "grounding": grounding, "qa": qa, "gleu": gleu}


def record(index, truth, prediction, **more):
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": truth, "generative_value": prediction}]
    return {"id": f"q{index}", "conversations": turns, **more}


def answers(path, *pairs, **more):
    path.write_text(json.dumps([record(index, *pair, **more) for index, pair in enumerate(pairs)]))
    return path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("command", "truth", "metrics"),
    [
        ("caption", "a dog on grass", ["cider"]),
        ("caption_list", ["a dog on grass", "one dog outside there"], ["cider"]),
        ("grounding", "[0.1, 0.2, 0.5, 0.6]", ["iou@0.5", "mean_iou"]),
        ("qa", "Yes.", ["em"]),
        ("gleu", "a dog on grass", ["gleu"]),
    ],
)
def test_every_command_writes_its_score_file(tmp_path, capsys, command, truth, metrics):
    prediction = truth if isinstance(truth, str) else truth[0]
    path = answers(tmp_path / "GQA_val-3_plus_mini-VQAv2.json", (truth, prediction), (truth, ""), (truth, prediction))
    out, per_sample = tmp_path / "scores" / "s.json", tmp_path / "scores" / "p.json"
    assert COMMANDS[command].main(["-a", str(path), "--output", str(out), "--per_sample", str(per_sample)]) == 0
    content = json.loads(out.read_text())
    assert {key: content[key] for key in ("task", "model", "split")} == {
        "task": "GQA",
        "model": "plus_mini-VQAv2",
        "split": "val",
    }
    assert (content["num_samples"], content["num_malformed"]) == (3, 1)
    assert [entry["metric"] for entry in content["scores"]] == metrics
    assert all(set(entry) == {"metric", "value", "stderr", "higher_is_better"} for entry in content["scores"])
    rows = json.loads(per_sample.read_text())["samples"]
    assert [row["id"] for row in rows] == ["q0", "q1", "q2"]
    assert [row["malformed"] for row in rows] == [False, True, False]
    for entry in content["scores"]:
        values = [row["values"][entry["metric"]] for row in rows]
        weights = [row.get("weights", {}).get(entry["metric"], 1) for row in rows]
        assert entry["value"] == pytest.approx(sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights))
    assert "1 malformed" in capsys.readouterr().out
    assert files(out.parent) == ["p.json", "s.json"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_from_anywhere_without_torch(tmp_path, command):
    truth = "[0, 0, 1, 1]"
    path = answers(tmp_path / "f.json", (truth, truth), ("[0, 0, 2, 1]", ""))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(FOLDER / f"{command}.py"), "-a", path.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 answers, 1 malformed" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers"}
    assert ("numpy" in loaded) == command.startswith("caption")


def test_what_the_records_say_goes_before_the_file_name(tmp_path):
    path = answers(
        tmp_path / "GQA_val-2_m1.json", ("a", "a"), ("b", "b"), task="VQAv2", generator="plus_mini:GQA", split="test"
    )
    out = tmp_path / "s.json"
    assert qa.main(["-a", str(path), "--output", str(out)]) == 0
    content = json.loads(out.read_text())
    assert [content[key] for key in ("task", "model", "split")] == ["VQAv2", "plus_mini:GQA", "test"]
    assert qa.main(["-a", str(path), "--output", str(out), "--task", "X", "--model", "Y", "--split", "Z"]) == 0
    content = json.loads(out.read_text())
    assert [content[key] for key in ("task", "model", "split")] == ["X", "Y", "Z"]


def test_scores_of_another_split_and_other_files_are_passed_over(tmp_path):
    qa.main(
        ["-a", str(answers(tmp_path / "GQA_val-2_m1.json", ("a", "a"), ("b", "b"))), "--output", str(tmp_path / "s")]
    )
    for asked, found in (("val", True), ("train", False), ("test", False), ("a", False), (None, True)):
        assert (read_scores(tmp_path / "s", asked) is not None) == found
    for content in ([], ["scores"], "scores", 1, None, {"scores": []}):
        (tmp_path / "other.json").write_text(json.dumps(content))
        assert read_scores(tmp_path / "other.json") is None


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("RefCOCO-caption_test-5k_EW", ("RefCOCO-caption", "EW", "test")),
        ("VQAv2-mini_train-2594_plus_mini_x", ("VQAv2", "plus_mini_x", "train")),
        ("m3it-COCO_val-100_mini", ("m3it-COCO", "mini", "val")),
    ],
)
def test_file_names_tell_task_split_and_model(name, identity):
    match = eval.answers.ANSWER_FILE_NAME.fullmatch(name)
    assert (match["task"], match["model"], match["split"]) == identity


def test_several_metrics_of_one_file(tmp_path):
    path = answers(tmp_path / "A_val-2_mini.json", ("[0, 0, 1, 1]", "[0, 0, 1, 1]"), ("[0, 0, 1, 1]", "left"))
    content = evaluate(path, ["em", "iou"]).score_file()
    assert [(entry["metric"], entry["value"]) for entry in content["scores"]] == [
        ("em", 0.5),
        ("iou@0.5", 0.5),
        ("mean_iou", 0.5),
    ]
    assert content["num_malformed"] == 1
    assert evaluate(path, "em").score_file()["num_malformed"] == 0


def test_ids_that_come_again_are_told_apart(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([record(0, "a", "a"), record(0, "b", "b"), {**record(0, "c", "c"), "question_id": 7}]))
    assert [sample.id for sample in eval.answers.read_answers(path)] == ["q0", "q0#2", "7"]


def test_caption_sends_several_references_to_caption_list(tmp_path, capsys):
    path = answers(tmp_path / "f.json", (["a b", "c d"], "a b"), ("e f", "e f"))
    assert caption.main(["-a", str(path)]) == 2
    assert "record id q0 has several references; score it with caption_list.py" in capsys.readouterr().err
    assert caption_list.main(["-a", str(path)]) == 0
    assert "CIDEr (whitespace)" in capsys.readouterr().out


def broken(change):
    content = record(1, "a", "a")
    change(content)
    return [record(0, "a", "a"), content]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ('[{"id": 1', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff\xfe[]", "not valid JSON"),
        ({}, "non-empty JSON list"),
        ([], "non-empty JSON list"),
        ([3], "record 0: not a JSON object"),
        (broken(lambda r: r.pop("conversations")), "record 1 (id q1): `conversations`"),
        (broken(lambda r: r["conversations"].extend(r["conversations"])), "exactly one human/assistant pair"),
        (broken(lambda r: r["conversations"].reverse()), "a human turn and then an assistant turn"),
        (
            broken(lambda r: r["conversations"][1].pop("generative_value")),
            "record 1 (id q1): `generative_value` is missing",
        ),
        (broken(lambda r: r["conversations"][1].update(generative_value=None)), "must be a string, not NoneType"),
        (broken(lambda r: r["conversations"][1].update(value="  ")), "record 1 (id q1): the truth"),
        (broken(lambda r: r["conversations"][1].update(value=[])), "the truth"),
        (broken(lambda r: r["conversations"][1].update(value=["a", 3])), "the truth"),
        (broken(lambda r: r["conversations"][0].pop("value")), "the question"),
        (broken(lambda r: r.update(task="B")), "more than one task (B, None); pass --task"),
        (broken(lambda r: r.update(task=[1])), "its task must be a string"),
    ],
)
def test_bad_answer_files_are_named(tmp_path, capsys, content, message):
    path = tmp_path / "GQA_val-2_mini.json"
    path.write_bytes(
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    assert (
        qa.main(["-a", str(path), "--output", str(tmp_path / "s.json"), "--per_sample", str(tmp_path / "p.json")]) == 2
    )
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert files(tmp_path) == [path.name]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_any_name_is_scored(tmp_path, capsys, command):
    truth = "[0, 0, 1, 1]"
    path = answers(tmp_path / "my answers.json", (truth, truth), (truth, ""))
    out, per_sample = tmp_path / "s.json", tmp_path / "p.json"
    assert COMMANDS[command].main(["-a", str(path), "--output", str(out), "--per_sample", str(per_sample)]) == 0
    assert not {"task", "model", "split"} & json.loads(out.read_text()).keys()
    assert "2 answers, 1 malformed" in capsys.readouterr().out


def test_what_nothing_tells_is_said_at_once_and_the_rest_kept(tmp_path, caplog):
    path = answers(tmp_path / "my answers.json", ("a", "a"), task="GQA")
    out = tmp_path / "s.json"
    assert qa.main(["-a", str(path), "--output", str(out)]) == 0
    assert json.loads(out.read_text())["task"] == "GQA"
    assert "s.json does not say the model and the split" in caplog.text
    assert "--model --split would say it" in caplog.text
    with pytest.raises(eval.errors.EvaluationError, match=r"tell the model and the split; pass --model --split"):
        eval.answers.identify(path, eval.answers.read_answers(path))


def test_a_matrix_asks_for_all_that_is_missing_at_once(tmp_path):
    for name, more in (("x", {}), ("y", {"task": "GQA", "split": "val"}), ("z", {"split": "test"})):
        path = answers(tmp_path / f"{name}.answers", ("a", "a"), **more)
        out, per_sample = tmp_path / "scores" / f"{name}.json", tmp_path / "scores" / f"{name}.samples.json"
        assert qa.main(["-a", str(path), "--output", str(out), "--per_sample", str(per_sample)]) == 0
    with pytest.raises(eval.errors.EvaluationError) as raised:
        collect(tmp_path / "scores", "val")
    lines = str(raised.value).splitlines()
    assert "x.json does not say the task, the model and the split" in lines[0]
    assert "x.samples.json does not say the task, the model and the split" in lines[1]
    assert "y.json does not say the model" in lines[2]
    assert "… and 1 more" in lines[3]  # z is of another split
    assert "--task, --model and --split" in lines[4]


def test_a_bad_truth_box_is_named_with_its_file(tmp_path, caplog):
    good = "[0, 0, 1, 1]"
    path = answers(tmp_path / "f.json", (good, good), ("[1, 0, 0, 1]", good))
    out = tmp_path / "s.json"
    assert grounding.main(["-a", str(path), "--output", str(out)]) == 0
    assert f"{path}: records with a truth without area" in caplog.text
    assert "id q1;" in caplog.text
    content = json.loads(out.read_text())
    assert (content["num_malformed"], [entry["num_unfit_truths"] for entry in content["scores"]]) == (1, [1, 1])


def test_the_answers_are_never_overwritten(tmp_path, capsys):
    path = answers(tmp_path / "GQA_val-1_mini.json", ("a", "a"))
    before = path.read_bytes()
    assert qa.main(["-a", str(path), "--output", str(tmp_path / "." / path.name)]) == 2
    assert "must be different files" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path, capsys, monkeypatch):
    path = answers(tmp_path / "GQA_val-1_mini.json", ("a", "a"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert qa.main(["-a", str(path), "--output", str(tmp_path / "s.json")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert files(tmp_path) == [path.name]


def test_a_metric_whose_engine_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(eval.metrics.METRICS, "judge", "eval.not_there:JudgeMetric")
    with pytest.raises(eval.errors.EvaluationError, match=r"its module \(eval\.not_there\) is not installed"):
        eval.metrics.load_metric("judge")
