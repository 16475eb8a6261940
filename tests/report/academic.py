"""A finished work folder with the paper's Academic numbers (Tables 3 and 5), everything else made up to fit them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from visatb.workdir.layout import Layout
from visatb.workdir.subsets import Subsets, TrainingData
from weighting_visatb import build_problem, weigh

Array = NDArray[np.float64]
PAPER = json.loads((Path(__file__).parents[1] / "weighting" / "paper_tables.json").read_text(encoding="utf-8"))
TASKS = list(PAPER["table5"]["tasks"])
METRICS = dict(zip(TASKS, ["cider", "cider", "em", "em", "em", "em", "iou@0.5"], strict=True))
EXTERNAL = "VQAv2"  # its test scores come from outside: no score files, no answers
HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">'
TEST, VAL, IMAGES = 400, 40, 40
ASKED = {
    "ShareGPT4V": ("Describe the image in detail.", "A red boat lies on a calm lake below two hills."),
    "Ref-caption": ("Describe the region [0.12, 0.30, 0.45, 0.81] in a short phrase.", "the left boat"),
    "VQAv2": ("What colour is the boat?\nAnswer the question using a single word or phrase.", "red"),
    "GQA": ("Is the boat to the left of the tree?\nAnswer with a single word or phrase.", "yes"),
    "ChartQA": ("What is the value of the tallest bar?\nAnswer with a single word or phrase.", "42"),
    "OCRVQA": ("Who wrote this book?\nAnswer the question using a single word or phrase.", "A. Lake"),
    "Ref-bbox": ("Give the bounding box of the region: the left boat", "[0.12, 0.30, 0.45, 0.81]"),
}
WRONG = ["a blue house", "no", "17", "I cannot tell.", "[0.5, 0.5, 0.9, 0.9]"]


def table_three(method: str) -> dict[str, float]:
    """The paper's test figures, accuracies as fractions."""
    row = PAPER["table3"]["rows"][method]
    return {task: v if METRICS[task] == "cider" else round(v / 100, 6) for task, v in zip(TASKS, row, strict=True)}


def contribution_matrix() -> Array:
    """C with the off-diagonal row and column means of Table 5, float64[7, 7]; the rest of it is drawn."""
    out, inward = (np.array(PAPER["table5"][key]) for key in ("c_out", "c_in"))
    n = len(TASKS)
    off = ~np.eye(n, dtype=bool)
    rng = np.random.default_rng(3)
    drawn = np.where(off, rng.normal(scale=0.13, size=(n, n)), 0)
    # Additive terms a_i + b_j off the diagonal that bring the drawn matrix to the wanted sums.
    system = np.block([[(n - 1) * np.eye(n), off.astype(float)], [off.astype(float), (n - 1) * np.eye(n)]])
    wanted = (n - 1) * np.concatenate([out, inward]) - np.concatenate([drawn.sum(1), drawn.sum(0)])
    a, b = np.split(np.linalg.lstsq(system, wanted, rcond=None)[0], 2)
    return np.where(off, drawn + a[:, None] + b[None, :], 1.0)


def validation_matrix() -> dict[str, Any]:
    """A validation matrix with the paper's C and D."""
    high = np.array(list(table_three("EW").values()))
    mini = high * np.array(PAPER["table5"]["one_minus_d"])
    reached = mini + contribution_matrix() * (high - mini)

    def cells(values: Array) -> dict[str, float]:
        return dict(zip(TASKS, values.tolist(), strict=True))

    def errors(values: Array) -> dict[str, float]:
        return cells(np.sqrt(np.clip(values * (1 - values), 0.01, 1) / 20000))

    return {
        "tasks": [*TASKS, "ShareGPT"],
        "higher_is_better": dict.fromkeys(TASKS, True),
        "mini": cells(mini),
        "plus_mini": {task: cells(row) for task, row in zip(TASKS, reached, strict=True)},
        "stderr": {
            "mini": errors(mini),
            "plus_mini": {task: errors(row) for task, row in zip(TASKS, reached, strict=True)},
        },
        "num_samples": dict.fromkeys(TASKS, 20000),
    }


def make(folder: Path) -> Path:
    """Write the whole work folder."""
    layout = Layout(folder)
    rng = np.random.default_rng(11)
    matrix = validation_matrix()
    _json(layout.matrix, matrix)
    weights = weigh(build_problem(matrix, fixed={"ShareGPT": 1.0}), bootstrap=200)
    _json(layout.weights, weights)
    _experiment(layout)
    _images(folder / "images")
    methods = list(PAPER["table3"]["rows"])
    _results(layout, methods)
    for task in TASKS:
        latent = rng.random(TEST)
        for method in methods:
            _scored(layout, "test", task, method, table_three(method)[task], latent, rng)
        latent = rng.random(VAL)
        for model in ("mini", *(f"plus_mini:{unit}" for unit in TASKS)):
            entry = matrix["mini"] if model == "mini" else matrix["plus_mini"][model.partition(":")[2]]
            _scored(layout, "val", task, model, entry[task], latent, rng)
    _trainings(layout, methods, weights["weights"], rng)
    return folder


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _experiment(layout: Layout) -> None:
    tasks: dict[str, Any] = {
        task: {
            "train": [f"/data/{task}_train.json"],
            "val": f"/data/{task}_val.json",
            "test": f"/data/{task}_test.json",
            "metric": [METRICS[task].removesuffix("@0.5")],
            "score": f"/data/{task}-scores.json" if task == EXTERNAL else None,
        }
        for task in TASKS
    }
    tasks["ShareGPT"] = {"train": ["/data/ShareGPT_train.json"], "weight": 1.0}
    content = {
        "name": "Academic, LLaVA-v1.5-7B",
        "model": {"path": "lmsys/vicuna-7b-v1.5", "family": "llava"},
        "tasks": tasks,
        "image_folder": str(layout.root / "images"),
        "subsets": {"large": 1.0, "mini": 0.03125, "seed": 0},
        "weighting": {"form": "standard", "temperature": 0.5, "alpha": {"out": 0.25, "in": 0.25, "difficulty": 0.5}},
        "methods": [method.removesuffix("v1") for method in PAPER["table3"]["rows"]],  # IGBv1 is our IGB
        "stl_steps": "epoch",
        "seed": 42,
        "global_batch_size": 128,
    }
    layout.experiment.parent.mkdir(parents=True, exist_ok=True)
    layout.experiment.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    mini = TrainingData({}, dict.fromkeys(TASKS, 2000), dict.fromkeys(TASKS, "mini"), 2000 * len(TASKS))
    Subsets(models={"mini": mini}).write(layout)


def begun(folder: Path, name: str = "begun", **settings: Any) -> None:
    """A work folder with nothing but its experiment, of two tasks."""
    tasks = {
        task: {"metric": "em", **{split: f"/data/{task}_{split}.json" for split in ("train", "val", "test")}}
        for task in "ab"
    }
    content = {"name": name, "model": {"path": "some/model"}, "tasks": tasks, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    Layout(folder).experiment.write_text(yaml.safe_dump(content), encoding="utf-8")


def _images(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for number in range(IMAGES):
        image = Image.new("RGB", (400, 300), (168 + number % 40, 205, 235))
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, 180, 400, 300), fill=(70, 120, 150 + number))
        for _ in range(3):
            x, y, width = (int(v) for v in (rng.integers(0, 330), rng.integers(120, 220), rng.integers(30, 70)))
            colour = tuple(int(v) for v in rng.integers(40, 240, 3))
            pen.polygon([(x, y + 40), (x + width, y + 40), (x + width // 2, y)], fill=colour)
            pen.ellipse((x, y + 45, x + width, y + 65), fill=colour)
        image.save(folder / f"scene-{number}.png")


def _results(layout: Layout, methods: list[str]) -> None:
    printed = PAPER["table3"]["printed"] | {"IGBv1": PAPER["table3"]["misprints"]["IGBv1"]["from_its_row"]}
    content = {
        "baseline": "STL",
        "tasks": TASKS,
        "metrics": {task: [{"metric": METRICS[task], "higher_is_better": True}] for task in TASKS},
        "methods": {m: {task: [value] for task, value in table_three(m).items()} for m in methods},
        "stl_models": {task: f"STL:{task}" for task in TASKS},
        "waiting": {},
        "delta_tasks": TASKS,
        "delta_i": {"STL": 0.0} | {method: values[0] for method, values in printed.items()},
        "delta_e": {"STL": 0.0} | {method: values[1] for method, values in printed.items()},
    }
    _json(layout.results, content)


def _scored(
    layout: Layout, split: str, task: str, model: str, value: float, latent: Array, rng: np.random.Generator
) -> None:
    name = f"STL:{task}" if model == "STL" else model
    score = {"metric": METRICS[task], "value": value, "stderr": None, "higher_is_better": True}
    identity = {"task": task, "model": name, "split": split}
    n = len(latent)
    if task == EXTERNAL and split == "test":
        return
    values = _values(value, METRICS[task], latent, rng)
    score["stderr"] = float(values.std(ddof=1) / np.sqrt(n))
    _json(layout.score(split, task, name), {**identity, "num_samples": n, "num_malformed": 0, "scores": [score]})
    samples = [{"id": f"{task}-{k}", "values": {METRICS[task]: float(v)}} for k, v in enumerate(values)]
    _json(layout.per_sample(split, task, name), {**identity, "samples": samples})
    answers = [_answer(task, name, k, float(v)) for k, v in enumerate(values)]
    _json(layout.answers(split, name, layout.questions(task, split, n)), answers)


def _values(mean: float, metric: str, latent: Array, rng: np.random.Generator) -> Array:
    """n values of exactly that mean: the same samples are easy for every model, up to noise."""
    n = len(latent)
    ease = latent + rng.normal(scale=0.04, size=n)
    if metric == "cider":
        values = np.exp(3 * (1 - ease))
        return values * mean / values.mean()
    order, hits = np.argsort(ease), int(mean * n)
    values = np.zeros(n)
    values[order[:hits]] = 1
    values[order[hits]] = mean * n - hits
    return values


def _answer(task: str, model: str, number: int, value: float) -> dict[str, Any]:
    question, truth = ASKED[task]
    said = truth if value > 0.5 else WRONG[(number + len(model)) % len(WRONG)]
    if model == "VisATB" and number % 7 == 3:
        said = HOSTILE
    return {
        "id": f"{task}-{number}",
        "task": task,
        "image": f"scene-{number % IMAGES}.png",
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": truth, "generative_value": said, "generator": model},
        ],
    }


def _trainings(layout: Layout, methods: list[str], weights: dict[str, float], rng: np.random.Generator) -> None:
    cost = {}
    share = 1 / len(TASKS)
    sizes = {"mini": 1 / 32, **{f"plus_mini:{task}": share + (1 - share) / 32 for task in TASKS}}
    sizes |= {f"STL:{task}": share for task in TASKS} | {method: 1.0 for method in methods if method != "STL"}
    for model, size in sizes.items():
        steps = round(3700 * size)
        cost[model] = {
            "train_seconds": round(36000 * size + 60, 1),
            "infer_seconds": 1800.0 if model in methods else 900.0,
            "samples": steps * 128,
            "steps": steps,
            "device": "8 × NVIDIA A100",
        }
        trained = [model.partition(":")[2]] if model.startswith("STL:") else [*TASKS, "ShareGPT"]
        step = np.arange(10, steps + 1, 10)
        history = [{"step": int(s), "epoch": s / steps, "loss": 1.0, "learning_rate": 1e-5} for s in step]
        for place, task in enumerate(trained):
            curve = 0.5 + 0.15 * place + np.exp(-step / 90) + 0.3 * np.exp(-step / 1500 * weights[task])
            for entry, value in zip(history, curve + rng.normal(scale=0.03, size=len(step)), strict=True):
                entry[f"task_loss/{task}"] = float(value)
        _json(layout.model(model) / "trainer_state.json", {"log_history": history})
        card = {
            "arguments": {"image_folder": str(layout.root / "images")},
            "tasks": trained,
            "weight_method": model if model in methods else "EW",
            "weights": weights,
            "data": [{"path": f"/data/{model}.json", "bytes": 10, "sha256": "0" * 64}],
            "samples": steps * 128,
            "global_batch_size": 128,
            "steps": steps,
            "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
            "hardware": {"system": "Linux", "machine": "x86_64", "gpus": ["NVIDIA A100"] * 8, "cuda": "12.8"},
            "git": {"commit": "0123456789abcdef", "changed": False},
        }
        _json(layout.model(model) / "run_card.json", card)
    _json(layout.cost, cost)
