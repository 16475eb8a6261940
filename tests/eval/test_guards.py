"""Guards: falls and their noise against hand-made figures, what is warned of, and that λ does not know them."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weighting_visatb
from eval.errors import EvaluationError
from eval.guards import measure, warnings

RIGHT = {
    "base": [1, 1, 1, 1, 1, 1, 1, 0, 1, 1],
    "mini": [1, 1, 1, 1, 1, 1, 0, 0, 1, 1],
    "plus_mini:a": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "plus_mini:b": [1, 1, 1, 1, 1, 1, 0, 0, 1, 1],
}


def write(folder: Path, task: str, model: str, values: list[float], split: str, *, alone: bool = False) -> None:
    """A score file of plain means, and the questions' own scores unless it is to stand alone."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"task": task, "model": model, "split": split}
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    score = {"metric": "em", "value": float(np.mean(values)), "stderr": error, "higher_is_better": True}
    content = {**identity, "num_samples": len(values), "num_malformed": 0, "scores": [score]}
    name = f"{task}_{model.replace(':', '_')}"
    (folder / f"{name}.json").write_text(json.dumps(content))
    if not alone:
        rows = [{"id": str(i), "values": {"em": float(v)}, "malformed": False} for i, v in enumerate(values)]
        (folder / f"{name}.per_sample.json").write_text(json.dumps({**identity, "samples": rows}))


def guard(folder: Path, **options: Any) -> Path:
    for model, values in RIGHT.items():
        write(folder, "calm", model, values, "guard", **options)
    return folder


def test_falls_are_from_the_base_and_effects_from_the_model_that_data_were_added_to(tmp_path):
    found = measure(guard(tmp_path), {"calm": 0.05})["calm"]
    assert found["base"]["value"] == 0.9
    assert {model: round(one["fall"], 9) for model, one in found["models"].items()} == {
        "mini": 0.1,
        "plus_mini:a": 0.8,
        "plus_mini:b": 0.1,
    }
    assert {unit: round(one["fall"], 9) for unit, one in found["units"].items()} == {"a": 0.7, "b": 0.0}
    lost = np.subtract(RIGHT["base"], RIGHT["mini"])
    assert found["models"]["mini"]["stderr"] == pytest.approx(lost.std(ddof=1) / math.sqrt(10))
    assert found["units"]["b"]["stderr"] == 0


def test_without_the_questions_scores_the_noise_is_that_of_two_independent_ones(tmp_path):
    found = measure(guard(tmp_path, alone=True), {"calm": 0.05})["calm"]
    errors = [np.std(RIGHT[name], ddof=1) / math.sqrt(10) for name in ("base", "mini")]
    assert found["models"]["mini"]["stderr"] == pytest.approx(math.hypot(*errors))


def test_warnings_name_the_proxies_and_the_task_behind_them(tmp_path):
    guards = measure(guard(tmp_path), {"calm": 0.2})
    [text] = warnings(guards)
    assert "guard calm: proxies fall below the base model's 0.900 by more than 0.2: plus_mini:a by 0.800" in text
    assert "mini by 0.1" not in text
    assert "most by the data of a (0.700" in text
    assert warnings(measure(tmp_path, {"calm": 0.9})) == []


def test_a_fall_within_the_noise_is_said_to_be(tmp_path):
    for model in ("base", "mini"):
        write(tmp_path, "calm", model, RIGHT[model], "guard")
    [text] = warnings(measure(tmp_path, {"calm": 0.05}))
    assert "within two standard errors of its questions" in text
    assert "no single task's data are seen to be the cause" in text


def test_a_guard_without_the_base_is_an_error(tmp_path):
    write(tmp_path, "calm", "mini", RIGHT["mini"], "guard")
    with pytest.raises(EvaluationError, match="guard calm: no score file of the base model"):
        measure(tmp_path, {"calm": 0.05})


def test_weights_are_the_same_with_and_without_a_guard(tmp_path, caplog):
    """The command: the guard stands in the weights file, its matrix and its warnings; λ and the rest are as before."""
    rng = np.random.default_rng(0)
    rates = {"mini": (0.3, 0.3), "plus_mini:a": (0.8, 0.4), "plus_mini:b": (0.3, 0.7)}
    for model, of_tasks in rates.items():
        for task, rate in zip("ab", of_tasks, strict=True):
            write(tmp_path / "val", task, model, (rng.random(60) < rate).astype(float).tolist(), "val")
    words = ["--scores", str(tmp_path / "val"), "--task_names", "a", "b", "--bootstrap", "50"]
    assert weighting_visatb.main([*words, "--output", str(tmp_path / "plain.json")]) == 0
    more = ["--guard", "calm=0.2", "--guard_scores", str(guard(tmp_path / "guard"))]
    with caplog.at_level(logging.WARNING):
        assert weighting_visatb.main([*words, *more, "--output", str(tmp_path / "guarded.json")]) == 0
    plain, guarded = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "guarded"))
    assert guarded.pop("guards")["calm"]["limit"] == 0.2
    assert guarded.pop("warnings") == [*plain.pop("warnings"), *warnings(measure(tmp_path / "guard", {"calm": 0.2}))]
    assert guarded == plain
    assert "guard calm" in caplog.text
    matrix = json.loads((tmp_path / "guarded.matrix.json").read_text())
    assert matrix.pop("guards")["calm"]["plus_mini:a"] == 0.1
    assert matrix == json.loads((tmp_path / "plain.matrix.json").read_text())


def test_a_guard_needs_its_scores(capsys):
    with pytest.raises(SystemExit):
        weighting_visatb.main(["matrix.json", "--guard", "calm=0.2"])
    assert "--guard_scores" in capsys.readouterr().err
