"""The three shipped experiments on miniature folders, from `visatb prepare` to the report.

Each runs twice: with stand-ins for training and answering, so that λ follows from what was trained on; and with real
training of a tiny model, which learns some of the miniatures' texts by heart.
"""

import json

import pytest
import yaml

from tests.eval.judge_server import Answer, JudgeServer, completion
from tests.prepare import publishers
from tests.prepare.checks import run as prepare
from tests.prepare.test_m3it import NAMES
from tests.tiny import tiny_llava
from tests.workflow.runs import Run
from tests.workflow.test_real import RealRun
from visatb.commands.validate import main as validate

pytestmark = pytest.mark.slow

MICRO_TRAINING = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "model_max_length": 2048,
    "bf16": False,
    "tf32": False,
    "dataloader_num_workers": 0,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A real tiny model, in a folder whose name stands for an untrained one to the stand-ins."""
    return tiny_llava(tmp_path_factory.mktemp("model") / "7b")


@pytest.fixture(params=["stand-ins", "real"])
def real(request):
    return request.param == "real"


def micro(folder, name, model, mini, real):
    """The prepared experiment file with the tiny model and sizes to match; everything about data stays."""
    path = folder / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    training = {key: value for key, value in content["training"].items() if key != "deepspeed"} | MICRO_TRAINING
    changes = {
        "model": {"path": str(model)},
        "subsets": {"large": 1.0, "mini": mini},
        "methods": ["EW", "VisATB"],
        "global_batch_size": 4,
        "training": training,
        "launcher": {"processes": 1},
        "weighting": {**content.get("weighting", {}), "bootstrap": 20, "on_degenerate": "drop"},
    }
    if real:  # so long that the large subsets teach more than the minis
        training |= {
            "num_train_epochs": 6 if name == "academic" else 30,
            "learning_rate": 5e-3,
            "model_max_length": 256,
            "save_strategy": "no",
        }
        changes |= {"generation": {"max_new_tokens": 12, "batch_size": 16}, "launcher": {"processes": 1, "threads": 1}}
        for task in content["tasks"].values():  # what is right in part counts
            task |= {"metric": "gleu"} if task.get("metric") in ("em", "cider") else {}
    path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return path


def check(path, tasks, real, environment=None):
    """Validate for real, then run to the report; λ of every task."""
    assert validate([str(path)]) == 0
    experiment = (RealRun if real else Run)(path, **(environment or {}))
    output, _ = experiment()
    assert output.strip() == str(experiment.workdir / "report/index.html")
    weights = experiment.read("weights.json")["weights"]
    assert list(weights) == tasks
    assert all(weight > 0 for weight in weights.values())
    return experiment, weights


def test_academic(tmp_path, model, real):
    source = publishers.academic(tmp_path / "source")
    arguments = (
        "--tokenizer",
        publishers.word_tokenizer(tmp_path / "tokenizer"),
        "--scale",
        0.0025,
        "--missing",
        "drop",
    )
    assert prepare("academic", source, tmp_path / "data", *arguments) == 0
    path = micro(tmp_path / "data", "academic", model, 0.2, real)
    (tmp_path / "data/VQAv2_scores.json").write_text(json.dumps({"EW": 78.0, "VisATB": 79.0}))
    tasks = list(yaml.safe_load(path.read_text())["tasks"])
    experiment, weights = check(path, tasks, real)
    assert weights["ShareGPT"] == 1.0
    assert len({round(weight, 6) for weight in weights.values()}) > 2
    assert set(experiment.read("results.json")["methods"]) == {"EW", "VisATB"}


def test_m3it(tmp_path, model, real):
    source = publishers.m3it(tmp_path / "source", dict.fromkeys(NAMES, ""))
    assert prepare("m3it", source, tmp_path / "data") == 0
    path = micro(tmp_path / "data", "m3it", model, 1 / 15, real)
    content = yaml.safe_load(path.read_text())
    _, weights = check(path, list(content["tasks"]), real)
    groups = {}
    for task, settings in content["tasks"].items():
        groups.setdefault(settings["group"], set()).add(weights[task])
    assert len(groups) == 5
    assert all(len(values) == 1 for values in groups.values())


def test_chat(tmp_path, model, monkeypatch, real):
    source = publishers.chat(tmp_path / "source")
    assert prepare("chat", source, tmp_path / "data") == 0
    path = micro(tmp_path / "data", "chat", model, 0.5, real)

    def judge(prompt, _):
        answer = prompt.partition("[Assistant 2]\n")[2].partition("\n\n")[0]
        if not real:
            return Answer(completion("10 1" if answer.startswith("?") else "10 9"))
        plain = sum(letter.isascii() and (letter.isalnum() or letter in "_ ") for letter in answer)
        return Answer(completion(f"9 {1 + round(8 * plain / max(1, len(answer)))}"))  # no words before training

    with JudgeServer(judge).running() as server:
        environment = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "none", "JUDGE_MODEL": "judge"}
        environment["JUDGE_CACHE"] = str(tmp_path / "judge.jsonl")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        check(path, ["conversation", "detail", "complex_reasoning"], real, environment)
        assert max(server.paid.values()) == 1
