"""The command: matrices and score folders in, weights files out; bad input named, nothing half-written."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import weighting_visatb
from eval import qa
from tests.weighting.test_method import small_matrix

SCRIPT = Path(weighting_visatb.__file__)


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def run(*arguments):
    return weighting_visatb.main([str(argument) for argument in arguments])


def answer_file(folder, task, model, right, questions=40):
    """An answer file with `right` correct answers, named as inference names it."""
    folder.mkdir(exist_ok=True)
    records = [
        {
            "id": f"q{index}",
            "task": task,
            "conversations": [
                {"from": "human", "value": "?"},
                {
                    "from": "gpt",
                    "value": "yes",
                    "generative_value": "Yes." if index < right else "no",
                    "generator": model,
                },
            ],
        }
        for index in range(questions)
    ]
    return write(folder / f"{task}_val-{questions}_{model.replace(':', '-')}.json", records)


def score_folder(tmp_path, per_sample=True):
    """Scores of the proxies of two tasks, made by the evaluator itself from answer files."""
    right = {"mini": (10, 20), "plus_mini:A": (30, 22), "plus_mini:B": (15, 28), "EW": (1, 1)}
    scores = tmp_path / "scores"
    for model, counts in right.items():
        for task, count in zip("AB", counts, strict=True):
            path = answer_file(tmp_path / "answers", task, model, count)
            extra = ["--per_sample", str(scores / f"{path.stem}.samples.json")] if per_sample else []
            assert qa.main(["-a", str(path), "--output", str(scores / path.name), *extra]) == 0
    return scores


def test_the_script_stands_alone(tmp_path):
    """One file, numpy beside it, no package of ours in reach; and no torch."""
    script = shutil.copy(SCRIPT, tmp_path)
    matrix = write(tmp_path / "m.json", small_matrix())
    command = [sys.executable, "-X", "importtime", script, str(matrix), "--output", str(tmp_path / "w.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "torch" not in done.stderr
    assert "λ_VisATB" in done.stdout
    content = json.loads((tmp_path / "w.json").read_text())
    assert content["tasks"] == list(content["weights"]) == ["A", "B", "C"]
    assert set(content) >= {"components", "contributions", "difficulties", "temperature", "alpha"}
    assert set(content["components"]) == set(content["alpha"]) == {"out", "in", "difficulty"}
    assert f"--visatb_weights {' '.join(f'{w:.4f}' for w in content['weights'].values())}" in done.stdout


def test_scores_need_their_reader(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "eval.collect", None)  # as where the script was copied alone
    assert run("--scores", tmp_path) == 2
    assert "--scores needs the project's eval folder" in capsys.readouterr().err


def test_options_reach_the_method(tmp_path):
    matrix, out = write(tmp_path / "m.json", small_matrix()), tmp_path / "new" / "w.json"
    alphas = ["--alpha-out", 1, "--alpha-in", 0, "--alpha-difficulty", 0]
    assert run(matrix, "--temperature", 1, *alphas, "--fixed", "S=1.0", "--fixed", "T=0.5", "--output", out) == 0
    content = json.loads(out.read_text())
    assert {task: content["weights"][task] for task in "ABC"} == pytest.approx(content["components"]["out"])
    assert content["weights"]["S"] == 1.0
    assert content["weights"]["T"] == 0.5
    assert run(matrix, "--temperature", "auto", "--output", out) == 0
    assert json.loads(out.read_text())["temperature"] < 0.5
    groups = write(tmp_path / "g.json", {"G": ["A", "B"], "H": ["C"]})
    rows = {"G": small_matrix()["plus_mini"]["A"] | {"B": 0.7}, "H": small_matrix()["plus_mini"]["C"]}
    assert run(write(matrix, small_matrix(plus_mini=rows)), "--groups", groups, "--output", out) == 0
    assert json.loads(out.read_text())["groups"] == {"G": ["A", "B"], "H": ["C"]}


def test_from_answers_to_weights(tmp_path):
    scores, out = score_folder(tmp_path), tmp_path / "w.json"
    assert run("--scores", scores, "--task_names", "B", "A", "--output", out, "--bootstrap", 200) == 0
    matrix = json.loads((tmp_path / "w.matrix.json").read_text())
    assert matrix["tasks"] == ["B", "A"]
    assert matrix["mini"] == {"A": 0.25, "B": 0.5}
    assert matrix["plus_mini"] == {"A": {"A": 0.75, "B": 0.55}, "B": {"A": 0.375, "B": 0.7}}
    assert matrix["num_samples"] == {"A": 40, "B": 40}
    assert matrix["stderr"]["mini"]["B"] == pytest.approx((0.25 / 39) ** 0.5)
    assert matrix["higher_is_better"] == {"A": True, "B": True}
    content = json.loads(out.read_text())
    assert content["contributions"] == [[1.0, pytest.approx(0.25)], [pytest.approx(0.25), 1.0]]
    assert set(content["intervals"]) == {"A", "B"}
    # The matrix is a matrix file: weighing it gives the same weights, with wider intervals (nothing is paired).
    again = tmp_path / "again.json"
    assert run(tmp_path / "w.matrix.json", "--output", again) == 0
    other = json.loads(again.read_text())
    assert other["weights"] == content["weights"]
    width = {k: v["high"] - v["low"] for k, v in content["intervals"].items()}
    assert other["intervals"]["A"]["high"] - other["intervals"]["A"]["low"] > width["A"]


def test_single_minis_of_groups_fill_their_own_columns(tmp_path):
    from eval.collect import collect

    scores = tmp_path / "scores"
    for model in ("single_mini:G", "single_mini:H", "single:G", "base"):
        for task, count in zip("ABC", (10, 20, 30), strict=True):
            path = answer_file(tmp_path / "answers", task, model, count + len(model))
            qa.main(["-a", str(path), "--output", str(scores / path.name)])
    matrix, samples = collect(scores, groups={"G": ["A", "B"], "H": ["C"]})
    assert matrix["single_mini"] == {"A": 23 / 40, "B": 33 / 40, "C": 1.0}
    assert matrix["groups"] == {"G": ["A", "B"], "H": ["C"]}
    assert matrix["single"] == {"G": {"A": 18 / 40, "B": 28 / 40, "C": 38 / 40}}
    assert samples == {}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    write(path, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(num_samples=39), "num_samples"),
        (lambda c: c["scores"][0].update(metric="cider"), "metric"),
        (lambda c: c["scores"][0].update(value=0.5), "score anew"),
        (lambda c: c.update(model="plus_mini:B"), "has a score file already"),
        (lambda c: c.update(scores=[]), "not a score file"),
        (lambda c: c["scores"][0].update(value="high"), "not a score file"),
        (lambda c: c["scores"][0].update(value=float("nan")), "holds NaN"),
        (lambda c: c["scores"][0].update(stderr=-1), "not a score file"),
    ],
)
def test_score_files_that_do_not_fit_are_named(tmp_path, capsys, change, message):
    scores = score_folder(tmp_path)
    edit(scores / "A_val-40_plus_mini-A.json", change)
    capsys.readouterr()
    assert run("--scores", scores, "--output", tmp_path / "w.json") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "A_val-40_plus_mini-" in error
    assert not list(tmp_path.glob("w*")) + list(tmp_path.glob(".w*"))


def test_per_sample_scores_must_be_of_the_same_questions(tmp_path, capsys):
    scores = score_folder(tmp_path)
    edit(scores / "A_val-40_mini.samples.json", lambda c: c["samples"][3].update(id="other"))
    assert run("--scores", scores) == 2
    assert "question ids" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('{"tasks": ["A", "B"', [], "not valid JSON"),
        ("[]", [], "must hold a JSON object"),
        ({"tasks": ["A", "A"]}, [], "twice"),
        ({"tasks": []}, [], "non-empty list"),
        ({"tasks": ["A"]}, [], "at least two"),
        ({"tasks": ["A", "B"]}, [], "no figure of mini on A"),
        ({"tasks": ["A", "B"], "weights": {"A": 1.0, "B": 1.0}}, [], "this is a weights file, not a validation matrix"),
        (small_matrix(mini={"A": 0.3, "B": "x", "C": 0.6}), [], "mini on B must be a finite number"),
        (small_matrix(mini={"A": 0.3, "B": float("nan"), "C": 0.6}), [], "mini on B must be a finite number"),
        (small_matrix(mini={"A": 0.3, "B": True, "C": 0.6}), [], "mini on B must be a finite number"),
        (small_matrix(mini={"A": 0.3, "B": 0.5, "C": 0.6, "D": 1}), [], "unknown 'D'"),
        (small_matrix(mini=[1, 2]), [], "`mini`"),
        (small_matrix(plus_mini={"A": 3}), [], "`A`"),
        (small_matrix(stderr=[1]), [], "stderr"),
        (small_matrix(higher_is_better={"Z": True}), [], "higher_is_better"),
        (small_matrix(groups={"G": ["A", "B"]}), [], "task 'C' must be in exactly one group"),
        (small_matrix(groups={"G": ["A", "B"], "H": ["C", "Z"]}), [], "'Z'"),
        (small_matrix(groups={"G": ["A", "B"], "H": 3}), [], "group 'H'"),
        (small_matrix(), ["--form", "simple"], "no figure of base on A"),
        (small_matrix(), ["--difficulty", "precise"], "no figure of single_mini on A"),
        (small_matrix(), ["--temperature", "0"], "temperature"),
        (small_matrix(), ["--alpha-out", "0.9"], "sum to 1"),
        (small_matrix(), ["--fixed", "A=1", "--fixed", "B=1"], "at least two"),
        (small_matrix(), ["--bootstrap", "-1"], "bootstrap"),
        (small_matrix(), ["--seed", "-1"], "seed"),
        ('{"tasks": ["A", "B"], "mini": {"A": 1' + 400 * "0" + "}}", [], "must be a finite number"),
        ('{"tasks": ["A", "B"], "mini": {"A": 1' + 9999 * "0" + "}}", [], "must be a finite number"),
        ('{"tasks": ' + 99999 * "[" + 99999 * "]" + "}", [], "nested too deeply"),
        ('{"tasks": ' + 400 * "[" + 400 * "]" + "}", [], "list of names"),
        ('{"tasks": ["\\ud800", "B"]}', [], "control letters"),
        ('{"tasks": ["A", "B\\u0000"]}', [], "control letters"),
        (small_matrix(answers={"mini": {"A": {"empty": 1}}}), [], "mini on A must give questions, empty"),
        (small_matrix(answers={"mini": {"A": 3}}), [], "mini on A must give questions, empty"),
        (small_matrix(answers=[]), [], "`answers`"),
    ],
)
def test_bad_input_is_named(tmp_path, capsys, content, options, message):
    path = tmp_path / "m.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    begun = time.monotonic()
    assert run(path, *options, "--output", tmp_path / "w.json") == 2
    assert time.monotonic() - begun < 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count(str(path)) == error.count("\n") == 1
    assert [item.name for item in tmp_path.iterdir()] == ["m.json"]


def test_what_is_no_text_and_paths_that_cannot_be(tmp_path, capsys):
    path = tmp_path / "m.json"
    path.write_bytes('{"tasks": ["ä", "B"]}'.encode("latin-1"))
    assert run(path) == 2
    assert "not UTF-8 text (invalid continuation byte at byte 12)" in capsys.readouterr().err
    assert run("m\0.json") == 2
    assert "null byte" in capsys.readouterr().err
    assert run(write(path, small_matrix()), "--output", tmp_path / "w\0.json") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_weights_file_is_called_one(tmp_path, capsys):
    path = tmp_path / "w.json"
    assert run(write(tmp_path / "m.json", small_matrix()), "--output", path) == 0
    assert run(path) == 2
    error = capsys.readouterr().err
    assert "is a weights file, not a validation matrix" in error
    assert error.count("\n") == 1


def test_without_arguments_it_says_how_to_use_the_nearest_matrix(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "python weighting_visatb.py MATRIX.json --output weights.json" in said
    assert "no matrix file is near" in said
    (tmp_path / "outputs" / "my run").mkdir(parents=True)
    write(tmp_path / "outputs" / "my run" / "matrix.json", small_matrix())
    for place in ("'outputs/my run/matrix.json'", "small.matrix.json"):
        with pytest.raises(SystemExit):
            run()
        said = capsys.readouterr().err
        assert f"python weighting_visatb.py {place} --output weights.json" in said
        assert "is the nearest matrix here" in said
        write(tmp_path / "small.matrix.json", small_matrix())  # nearer than any work folder


def test_scores_of_some_of_the_tasks_are_no_whole(tmp_path, capsys, caplog):
    """Proxies of five tasks, scored on two: an error, unless these two are asked for by name."""
    scores, out = score_folder(tmp_path), tmp_path / "w.json"
    for unit in "CDE":
        for task in "AB":
            path = answer_file(tmp_path / "answers", task, f"plus_mini:{unit}", 12)
            assert qa.main(["-a", str(path), "--output", str(scores / path.name)]) == 0
    assert run("--scores", scores, "--output", out) == 2
    assert "`plus_mini` has models of C, D, E, but there is no figure on these" in capsys.readouterr().err
    assert not out.exists()
    assert run("--scores", scores, "--task_names", "A", "B", "--output", out) == 0
    assert "no weight for C, D, E" in caplog.text
    assert list(json.loads(out.read_text())["weights"]) == ["A", "B"]
    assert run("--scores", scores, "--task_names", "A", "B", "C") == 2
    assert "no figure of mini on C" in capsys.readouterr().err


def test_collapsed_answers_travel_from_the_answers_to_the_weights_file(tmp_path):
    scores, out = score_folder(tmp_path), tmp_path / "w.json"
    path = answer_file(tmp_path / "answers", "A", "mini", 0)  # "no" to all 40 questions, each of whose truth is "yes"
    assert qa.main(["-a", str(path), "--output", str(scores / path.name), "--per_sample", _samples(scores, path)]) == 0
    assert json.loads((scores / path.name).read_text())["answers"] == {
        "questions": 40,
        "empty": 0,
        "distinct": 1,
        "most_common": 40,
        "same_truth": 0,
        "text": "no",
    }
    assert run("--scores", scores, "--output", out) == 0
    said = [text for text in json.loads(out.read_text())["warnings"] if text.startswith("A: mini")]
    assert said == [
        "A: mini scores 0 and gives one answer, 'no', to 40 of 40 questions; D(A) and the contributions to A say "
        "little about what it has learnt"
    ]
    again = tmp_path / "again.json"
    assert run(tmp_path / "w.matrix.json", "--output", again) == 0  # the matrix file carries it
    assert set(said) <= set(json.loads(again.read_text())["warnings"])


def _samples(scores, path):
    return str(scores / f"{path.stem}.samples.json")


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["m.json", "--scores", "d"],
        ["m.json", "--fixed", "A"],
        ["m.json", "--fixed", "A=x"],
        ["m.json", "--form", "x"],
    ],
)
def test_bad_usage_exits_with_2(options):
    with pytest.raises(SystemExit) as stopped:
        run(*options)
    assert stopped.value.code == 2


def test_missing_files_and_folders(tmp_path, capsys):
    assert run(tmp_path / "nope.json") == 2
    assert run("--scores", tmp_path / "nope") == 2
    assert run("--scores", tmp_path) == 2
    error = capsys.readouterr().err
    assert "No such file" in error
    assert "no such folder" in error
    assert "no score file of a proxy" in error


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(write(tmp_path / "m.json", small_matrix()), "--output", tmp_path / "file" / "w.json") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert run(write(tmp_path / "m.json", small_matrix()), "--output", tmp_path / "w.json") == 2
    assert "No space left" in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["m.json"]
