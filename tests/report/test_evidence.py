"""benchmarks/evidence: work folders of many seeds become tables; what it runs is the shipped examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import evidence, evidence_tables
from benchmarks.evidence import WORLDS, experiment, main
from benchmarks.evidence_seeds import coverage, find, joined
from eval.overall import Table, overall
from visatb.experiment.read import load_experiment
from visatb.workdir.layout import Layout
from weighting_visatb import build_problem, weigh

ROOT = Path(__file__).parents[2]
TASKS = ("colour", "shape", "place")
METHODS = ("STL", "EW", "VisATB")
N = 60


def work_folder(folder: Path, seed: int, noise: float, complete: bool = True) -> dict[str, Any]:
    """What one seed leaves: scores of proxies and finals as `visatb run` without repeats writes them, and λ."""
    layout = Layout(folder)
    folder.mkdir(parents=True)
    settings = {"on_degenerate": "error", "temperature": 0.5}
    layout.experiment.write_text(yaml.safe_dump({"name": folder.name, "weighting": settings}))
    rng, questions = np.random.default_rng(seed), np.random.default_rng(0).normal(0, 0.05, (len(TASKS), N))
    matrix: dict[str, Any] = {"tasks": list(TASKS), "mini": {}, "plus_mini": {task: {} for task in TASKS}, "stderr": {}}
    for k, task in enumerate(TASKS):
        base = 0.4 + 0.02 * k
        matrix["mini"][task] = _score(layout, "val", task, "mini", base + questions[k] + rng.normal(0, noise))
        for unit in TASKS:
            level = base + (0.3 if unit == task else 0.1)
            values = level + questions[k] + rng.normal(0, noise) + rng.normal(0, 0.02 if noise else 0, N)
            matrix["plus_mini"][unit][task] = _score(layout, "val", task, f"plus_mini:{unit}", values)
    layout.weights.write_text(json.dumps(weigh(build_problem(matrix), bootstrap=0)))
    methods: dict[str, dict[str, list[float]]] = {method: {} for method in METHODS}
    for k, task in enumerate(TASKS):
        for method in METHODS:
            name = f"STL:{task}" if method == "STL" else method
            values = 0.7 + 0.05 * (method == "VisATB") + questions[k] + rng.normal(0, 0.01) + rng.normal(0, 0.02, N)
            methods[method][task] = [_score(layout, "test", task, name, values)]
    metrics = {task: [{"metric": "em", "higher_is_better": True}] for task in TASKS}
    results = {"baseline": "STL", "tasks": list(TASKS), "metrics": metrics, "methods": methods}
    results["stl_models"] = {task: f"STL:{task}" for task in TASKS}
    layout.results.write_text(json.dumps(results))
    card = {
        "versions": {"torch": "9.9", "transformers": "9.9", "numpy": "9.9"},
        "git": {"commit": str(seed).ljust(40, "0")},
    }
    (layout.model("EW")).mkdir(parents=True)
    (layout.model("EW") / "run_card.json").write_text(json.dumps(card))
    if complete:
        (folder / "all.ok").touch()
    return results


def _score(layout: Layout, split: str, task: str, model: str, values: Any) -> float:
    identity = {"task": task, "model": model, "split": split, "num_samples": N, "num_malformed": 0}
    stderr = float(values.std(ddof=1) / N**0.5)
    one = {"metric": "em", "value": float(values.mean()), "stderr": stderr, "higher_is_better": True}
    path, samples = layout.score(split, task, model), layout.per_sample(split, task, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**identity, "scores": [one]}))
    kept = [{"id": str(k), "values": {"em": float(value)}} for k, value in enumerate(values)]
    samples.write_text(json.dumps({**identity, "samples": kept}))
    return float(values.mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    for seed in range(101, 107):
        work_folder(folder / f"tiny-{seed}", seed, 0.03, complete=seed < 106)
    (folder / "tiny-101.yaml").write_text("")
    return folder


def test_only_complete_folders_count_and_none_twice(folder: Path, tmp_path: Path) -> None:
    assert [seed.number for seed in find([folder])["tiny"]] == [101, 102, 103, 104, 105]
    work_folder(tmp_path / "tiny-103", 103, 0.0)
    with pytest.raises(ValueError, match=r"tiny-103 .*same world and seed"):
        find([folder, tmp_path])


def test_folders_of_other_settings_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    work_folder(tmp_path / "tiny-120", 120, 0.03)
    text = (tmp_path / "tiny-120" / "experiment.yaml").read_text()
    (tmp_path / "tiny-120" / "experiment.yaml").write_text(text.replace("0.5", "1.0") + "seed: 120\n")
    with pytest.raises(ValueError, match=r"tiny-120: weighting.temperature is 1.0, but 0.5 in .*only seeds may differ"):
        find([folder, tmp_path])


def test_seeds_are_put_together_as_repeats(folder: Path) -> None:
    first, second, third, *_ = find([folder])["tiny"]
    matrix, samples = joined(first, [second, third], ["mini"])
    for task in TASKS:
        assert matrix["mini"][task] == [seed.measured[0]["mini"][task] for seed in (first, second, third)]
        assert matrix["plus_mini"] == first.measured[0]["plus_mini"]
        assert samples[task]["mini#3"] is third.measured[1][task]["mini"]
        assert "plus_mini:colour#2" not in samples[task]
    assert isinstance(first.measured[0]["mini"]["colour"], float), "the seed itself is as it was"
    problem = build_problem(matrix)
    assert problem.counts[0].tolist() == [3, 3, 3]
    both, _ = joined(first, [second], ["mini", "plus_mini"])
    assert (build_problem(both).counts == 2).all()


def test_coverage_of_what_does_not_differ_and_of_what_does(tmp_path: Path, folder: Path) -> None:
    """Seeds that are alike are held always; with much of it the questions' interval is too narrow."""
    for seed in range(1, 5):
        work_folder(tmp_path / f"tiny-{seed}", seed, 0.0)
    assert coverage(find([tmp_path])["tiny"], 1, ())["share"] == 1
    seeds = find([folder])["tiny"]
    alone, more = coverage(seeds, 1, ()), coverage(seeds, 3, ("mini",))
    assert (alone["of"], more["of"]) == (15, 15)
    assert alone["share"] < more["share"]
    assert alone["mean_width"] < more["mean_width"]
    assert coverage(seeds[:4], 3, ("mini",))["share"] is None, "one seed left over is no mean"


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """evidence.json, the page and the pictures' folder."""
    out = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        places = {"RESULTS": out, "PAGE": out / "evidence.md", "IMAGES": out, "README": out / "README.md"}
        for name, path in places.items():
            patch.setattr(evidence_tables, name, path)
        begin, end = evidence_tables.BEGIN, evidence_tables.END
        (out / "README.md").write_text(f"| **Evidence?** | {begin} {end} |\n")
        (out / "evidence.md").write_text(f"Mine.\n\n{begin}\nold\n{end}\n\nMine, too.\n")
        main(["tables", str(folder)])
        first = (out / "evidence.md").read_bytes()
        main(["tables", str(folder)])
        assert (out / "evidence.md").read_bytes() == first
    return json.loads((out / "evidence.json").read_text()), first.decode(), out


def test_evidence_has_each_seed(written: tuple[dict[str, Any], str, Path], folder: Path) -> None:
    content, _, _ = written
    world = content["worlds"]["tiny"]
    assert world["seeds"] == [101, 102, 103, 104, 105]
    assert world["baseline"] == "STL"
    for place, seed in enumerate(world["seeds"]):
        methods = json.loads((folder / f"tiny-{seed}" / "results.json").read_text())["methods"]
        figures = {m: {(t, ""): v[0] for t, v in row.items()} for m, row in methods.items()}
        for method, one in overall(Table(figures, {(t, ""): True for t in TASKS}), "STL").items():
            mine = world["methods"][method]
            assert mine["delta_i"][place] == pytest.approx(one.improvement)
            assert mine["delta_e"][place] == pytest.approx(one.error)
            assert {t: mine["tasks"][t][place] for t in TASKS} == pytest.approx(one.tasks)
        weights = json.loads((folder / f"tiny-{seed}" / "weights.json").read_text())["weights"]
        assert world["weights"][str(seed)] == pytest.approx(weights)
    assert world["coverage"]["questions"] == world["coverage"]["in_full"]["one training of each"]["share"]
    assert {c["other"] for c in world["comparisons"]} == {"EW", "STL"}
    assert content["versions"]["torch"] == "9.9"
    assert len(content["commits"]) == 5


def test_page_keeps_what_people_wrote(written: tuple[dict[str, Any], str, Path]) -> None:
    content, page, out = written
    assert page.startswith("Mine.\n")
    assert page.endswith("Mine, too.\n")
    assert "\nold\n" not in page
    assert "### tiny: 5 seeds (101 to 105)" in page
    gains = content["worlds"]["tiny"]["methods"]["VisATB"]["delta_i"]
    assert f"| VisATB | {np.mean(gains):+.2f} |" in page
    assert "| VisATB against EW | +" in page
    assert "by itself" in page
    assert "ahead" in page
    for picture in ("methods", "weights"):
        text = (out / f"evidence-tiny-{picture}.svg").read_text()
        assert len(text) < 40_000
        assert f"](images/evidence-tiny-{picture}.svg)" in page
    assert str(out) not in page + json.dumps(content)


def test_readme_says_it_in_two_sentences(written: tuple[dict[str, Any], str, Path]) -> None:
    content, _, out = written
    text = (out / "README.md").read_text()
    first, full = content["worlds"]["tiny"]["comparisons"][0], content["worlds"]["tiny"]["coverage"]["in_full"]
    assert text.startswith("| **Evidence?** | <!--")
    assert text.endswith("--> |\n")
    assert (
        f"Over 5 seeds of the [tiny experiment](docs/tiny.md), ΔI of VisATB less that of EW is {first['delta_i']:+.2f}"
        in text
    )
    assert {"ahead": "VisATB is ahead."}[first["verdict"]] in text
    once, three = full["one training of each"], full["mini × 3"]
    assert f"in {once['held']} of 15 cases when every proxy was trained once, in {three['held']} of 15 cases" in text
    assert evidence_tables.sentences({"comparisons": []}) == "", "no verdict, no claim"


def test_a_world_beside_another_is_measured_against_its_baseline(folder: Path, tmp_path: Path) -> None:
    work_folder(tmp_path / "tiny_shrunken-102", 7, 0.03)
    found = find([folder, tmp_path])
    entry = evidence_tables.entry_of("tiny", found["tiny"], found)
    mine = entry["methods"]["VisATB, shrunken λ"]["delta_i"]
    assert [value is None for value in mine] == [True, False, True, True, True]
    there = json.loads((tmp_path / "tiny_shrunken-102/results.json").read_text())["methods"]["VisATB"]
    base = json.loads((folder / "tiny-102/results.json").read_text())["methods"]["STL"]
    expected = np.mean([100 * (there[t][0] - base[t][0]) / base[t][0] for t in TASKS])
    assert mine[1] == pytest.approx(expected)


@pytest.mark.parametrize("world", list(WORLDS))
def test_worlds_are_the_examples_with_other_seeds(world: str, tmp_path: Path) -> None:
    example, changes = WORLDS[world]
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(experiment(world, 107, tmp_path), sort_keys=False))
    mine, theirs = load_experiment(path), load_experiment(ROOT / "examples" / f"{example}.yaml")
    assert (mine.seed, mine.subsets.seed) == (107, 107)
    assert mine.model.path == theirs.model.path
    assert mine.training == {**theirs.training, **changes.get("training", {})}
    if world != "null":  # whose splits are of the seed
        assert mine.image_folder == theirs.image_folder
    if world == "tiny_uneven":  # of which the first records are taken
        names = {task: Path(given.train[0]).name for task, given in mine.tasks.items()}
        assert (names["chart"], names["vqa"]) == (
            "chart_train-1200-first-220.json",
            "vqa_train-2400-first-1000.json",
        )
    elif world != "null":
        assert mine.tasks == theirs.tasks
    assert mine.methods == changes["methods"]


def test_run_goes_world_by_world_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def visatb(*words: str) -> None:
        calls.append([Path(word).name for word in words])
        if words[0] == "run":
            Path(words[3]).mkdir()

    monkeypatch.setattr(evidence, "visatb", visatb)
    (tmp_path / "null-2").mkdir()
    (tmp_path / "null-2" / "all.ok").touch()
    main(["run", str(tmp_path), "--worlds", "null", "tiny", "--seeds", "1", "2"])
    assert [words[:2] for words in calls if words[0] != "prepare"] == [
        ["init", "tiny-2"], ["run", "null-1.yaml"], ["run", "tiny-1.yaml"], ["run", "tiny-2.yaml"],
    ]  # fmt: skip
    assert [path.parent.name for path in sorted(tmp_path.glob("*/all.ok"))] == ["null-1", "null-2", "tiny-1", "tiny-2"]
    calls.clear()
    main(["run", str(tmp_path), "--worlds", "null", "tiny", "--seeds", "1", "2"])
    assert calls == []
