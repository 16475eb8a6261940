"""From a work folder's content to what the page's template shows: the top of the page, and all sections' parts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from eval.weights import COMPONENTS, WEIGHT_RANGE
from visatb.report import guards, measured, outcome
from visatb.report.costs import costs
from visatb.report.load import Run, is_proxy
from visatb.report.tables import csv_links
from visatb.workdir.conclusions import WAITING
from visatb.workdir.contents import RunCard
from visatb.workdir.layout import Layout
from visatb.workdir.verdict import Comparison
from visatb.workdir.words import in_words
from weighting_visatb import collapsed

FEWEST_STEPS = 100  # of a proxy run (Appendices B and G)


def view(run: Run) -> dict[str, Any]:
    """Everything the template needs but the predictions and the figure files."""
    comparisons = run.comparisons()
    comparison = comparisons[0] if comparisons else None
    return {
        "title": run.experiment.name,
        "facts": _facts(run),
        "words": in_words(comparison, _waiting_words(run)),
        "tiles": _tiles(run, comparison),
        "notes": notes(run),
        "matrix": measured.matrix(run),
        "guards": guards.guards(run),
        "groups": measured.groups(run),
        "contributions": measured.contributions(run),
        "difficulties": measured.difficulties(run),
        "weights": measured.weights(run),
        "results": outcome.results_table(run, comparisons),
        "losses": outcome.loss_charts(run),
        "curves": outcome.curves(run),
        "whatif": measured.whatif(run),
        "costs": costs(run),
        "settings": _settings(run),
        "tables": csv_links(run),
    }


def script_json(data: object) -> Markup:
    """JSON for a script element: nothing in it can end the element or start a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter, escape in (("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")):
        text = text.replace(letter, escape)
    return Markup(text)


# ---------------------------------------------------------------------------------------------- the top of the page


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = [("Model", name)] if (name := base_model(run)) else []
    facts.append(("Tasks", str(len(run.tasks))))
    if run.weights:
        groups = run.weights.get("groups")
        facts += [("Groups", str(len(groups)))] if groups else []
        facts.append(("Form", run.experiment.weighting.form))
        facts.append(("Temperature", f"{run.weights['temperature']:.3g}"))
        alpha = run.weights["alpha"]
        facts.append(("α out / in / D", " / ".join(f"{alpha[part]:.3g}" for part in COMPONENTS)))
    if run.results:
        facts.append(("Baseline", run.results.baseline))
    return facts


def base_model(run: Run) -> str:
    """The model that every run started from: a hub name, or a folder's name without its path."""
    path = run.experiment.model.path
    return Path(path).name if path.startswith(("/", ".")) else path


def _waiting_words(run: Run) -> str:
    if not run.weights:
        return "The task weights wait for the proxies and their validation; run `visatb run` again to go on."
    if not run.results:
        return "The task weights are there; the final runs and their tests are still to come."
    return WAITING


def _tiles(run: Run, comparison: Comparison | None) -> list[dict[str, str]]:
    tiles = []
    if comparison:
        c = comparison
        below = [f"against {c.other}"] * 2
        if not c.baseline_is_other:
            below = [f"{c.other}: {c.delta_i[1]:+.2f}%", f"{c.other}: {c.delta_e[1]:.2f}%"]
        tiles.append(_tile(f"ΔI, {c.method}", f"{c.delta_i[0]:+.2f}%".replace("-", "−"), below[0]))
        tiles.append(_tile(f"ΔE, {c.method}", f"{c.delta_e[0]:.2f}%", below[1]))
    if run.weights:
        weights = measured.unit_weights(run.weights)
        low, high = min(weights, key=lambda name: weights[name]), max(weights, key=lambda name: weights[name])
        tiles.append(_tile("λ from – to", f"{weights[low]:.2f} – {weights[high]:.2f}", f"{low} – {high}"))
    summary = costs(run)
    if summary and summary["overhead"]:
        tiles.append(_tile("Cost of measuring", summary["overhead"], summary["overhead_of"]))
    return tiles


def _tile(name: str, value: str, below: str) -> dict[str, str]:
    return {"name": name, "value": value, "below": below}


def notes(run: Run) -> list[str]:
    """What is missing, doubtful or against the paper's advice."""
    unread = [
        f"{bad} of {count} answers of {model} on {task} ({split}) could not be read; they score 0."
        for (split, task, model), (bad, count) in sorted(run.malformed.items())
        if count and bad / count >= 0.05
    ]
    same = [
        f"{task}: {model} {fault} of the {split} set."
        for (split, task, model), counts in sorted(run.answers.items())
        if split == "test" and (fault := collapsed(counts))  # validation answers are the weights' matter
    ]
    return [*_notes_on_results(run), *_notes_on_weights(run), *_notes_on_proxies(run), *same, *unread]


def _notes_on_results(run: Run) -> list[str]:
    results = run.results
    if not results:
        return ["Waits for the final runs and their test scores."] if run.weights else []
    lacking: dict[str, list[str]] = {}
    for method, figures in results.methods.items():
        for task in results.tasks:
            if not (values := figures.get(task)) or None in values:
                lacking.setdefault(task, []).append(method)
    found = []
    for task, names in lacking.items():
        source = results.waiting.get(task)
        where = f", which comes from outside, in {source}" if source else ""
        found.append(f"Waits for a test score of {task} ({', '.join(names)}){where}.")
    if results.delta_problem:
        found.append(f"No ΔI and ΔE: {results.delta_problem}.")
    if results.baseline != "STL":
        found.append(f"No single-task runs (STL): ΔI and ΔE are relative to {results.baseline}.")
    return found


def _notes_on_weights(run: Run) -> list[str]:
    if not run.weights:
        return ["Waits for the task weights: proxies, their validation, or the matrix are not complete."]
    found = [f"λ: {text}." for text in run.weights.get("warnings", [])]
    if "warnings" not in run.weights:  # an older file does not say itself what is doubtful
        low, high = WEIGHT_RANGE
        found = [
            f"The weight of {unit}, {weight:.3f}, is outside {low} to {high}: a higher T would mend it."
            for unit, weight in measured.unit_weights(run.weights).items()
            if not low <= weight <= high
        ]
    if not run.weights.get("intervals") and not any("no intervals" in text for text in found):
        found.append("The weights have no intervals: none were asked for, or standard errors are missing.")
    return found


def _notes_on_proxies(run: Run) -> list[str]:
    steps = {name: entry.get("steps") for name, entry in run.cost.items() if is_proxy(name) and name != "base"}
    short = [f"{name} ({n})" for name, n in steps.items() if isinstance(n, int) and 0 < n < FEWEST_STEPS]
    advice = f"Proxies of fewer than {FEWEST_STEPS} optimizer steps, which the paper advises against"
    return [f"{advice}: {', '.join(short)}."] if short else []


# ---------------------------------------------------------------------------------------------- how to repeat it


def _settings(run: Run) -> dict[str, Any]:
    cards = [run.cards[name] for name in ("VisATB", "EW", *run.cards) if name in run.cards]
    card = cards[0] if cards else RunCard()
    facts = [(name, str(version)) for name, version in (card.get("versions") or {}).items() if version]
    hardware = card.get("hardware") or {}
    machine = [str(hardware[key]) for key in ("system", "machine") if hardware.get(key)]
    machine += [f"{count} × {name}" for name, count in Counter(map(str, hardware.get("gpus") or [])).items()]
    machine += [f"CUDA {hardware['cuda']}"] if hardware.get("gpus") and hardware.get("cuda") else []
    git = card.get("git") or {}
    return {
        "yaml": run.experiment_text,
        "versions": facts,
        "machine": ", ".join(machine),
        "commit": f"{git['commit']}{' (with local changes)' if git.get('changed') else ''}" if "commit" in git else "",
        "subsets": _indented(run.subsets.as_json(Layout(run.folder))) if run.subsets else "",
    }


def _indented(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)
