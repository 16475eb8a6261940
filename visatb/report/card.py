"""The final checkpoint's model card, in the form that model hubs read (YAML head, then Markdown)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from visatb.report.figures import interval_kind
from visatb.report.load import Run
from visatb.report.measured import interval_condition

FINALS = ("VisATB", "EW")


def model_card(run: Run, shown: Mapping[str, Any]) -> str:
    """Markdown; `shown` is view(run)."""
    final = next((name for name in (*FINALS, *run.methods) if name in run.cards), None)
    parts = [
        _head(run),
        f"# {_text(shown['title'])}: {_text(final or 'no final checkpoint yet')}",
        _what(run, final),
        "## Training data",
        _data(run, final),
        "## Task weights",
        _weights(run),
        "## Results on the test sets",
        f"{_text(shown['words'].headline)}. {_text(shown['words'].sentence)} {_text(shown['words'].caution)}".strip(),
        _results(shown["results"]),
        "## How to make it again",
        _again(run, shown, final),
        "## Limits",
        _limits(run, shown),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(run: Run) -> str:
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["visatb"]}
    head["base_model"] = run.experiment.model.path
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _what(run: Run, final: str | None) -> str:
    if final is None:
        return "The final runs are not done; this card is made anew with every report."
    card = run.cards[final]
    weighting = {"VisATB": "task weights found by validation (VisATB)", "EW": "equal task weights"}
    return (
        f"A multimodal model fine-tuned on {len(run.tasks)} tasks with {weighting.get(final, f'the method {final}')}: "
        f"{card.get('steps', '?')} optimizer steps of {card.get('global_batch_size', '?')} samples, "
        f"{card.get('samples', '?')} samples in all. {_applied(card)}"
    )


def _applied(card: Mapping[str, Any]) -> str:
    arguments = card.get("arguments")
    if isinstance(arguments, Mapping) and arguments.get("apply_weights") == "sampling":
        return (
            "Samples are drawn in proportion to their task's weight, one of each optimizer step also to its tokens. "
            "The loss is the plain mean over the step's valid tokens; its expected gradient is the weighted loss's."
        )
    return (
        "Every valid token's loss is multiplied by its task's weight and the sum divided by the sum of the weights of "
        "the whole optimizer step."
    )


def _data(run: Run, final: str | None) -> str:
    rows = []
    for name in run.tasks:
        task = run.experiment.tasks.get(name)
        names = ", ".join(_code(file.rpartition("/")[2]) for file in (task.train if task else []))
        rows.append([_text(name), names or "–", _text(", ".join(task.metric if task else []) or "–")])
    table = _table(["Task", "Training files", "Metric"], rows)
    files = run.cards[final].get("data") or [] if final else []
    digests = [
        f"- {_code(str(f.get('path', '')).rpartition('/')[2])}, SHA-256 {_code(f.get('sha256', ''))}" for f in files
    ]
    return "\n\n".join(part for part in (table, "\n".join(digests)) if part)


def _weights(run: Run) -> str:
    if not run.weights:
        return "Not computed yet."
    weights = run.weights
    intervals = weights.get("intervals") or {}
    rows = []
    for task in weights["tasks"]:
        interval = intervals.get(task)
        text = f"{interval['low']:.3f} to {interval['high']:.3f}" if interval else "–"
        rows.append([_text(task), f"{weights['weights'][task]:.4f}", text])
    alpha = ", ".join(f"{name} {share:.3g}" for name, share in weights["alpha"].items())
    table = _table(["Task", "λ", "95% interval"], rows)
    notes = [f"The intervals hold the noise of {_of(interval_kind(weights))}"] if intervals else []
    notes += [condition] if (condition := interval_condition(weights)) else []
    doubts = [f"- {_text(text)}" for text in weights.get("warnings", [])]
    parts = [f"T = {weights['temperature']:.4g}; α: {alpha}.", table, "; ".join(notes) + "." if notes else ""]
    return "\n\n".join(part for part in [*parts, "\n".join(doubts)] if part)


def _results(results: Mapping[str, Any] | None) -> str:
    if not results:
        return "No test results yet."
    tasks = [task for task, span in results["tasks"] for _ in range(span)]
    heads = [f"{_text(t)} {_text(h['label'])} {h['arrow']}" for t, h in zip(tasks, results["heads"], strict=True)]
    rows = [[_text(row["name"]), *(cell["text"] for cell in row["cells"]), *row["deltas"]] for row in results["rows"]]
    note = f"ΔI and ΔE are in percent of {_text(results['baseline'])}."
    parts = [_table(["Method", *heads, "ΔI% ↑", "ΔE% ↓"], rows), note, _comparisons(results["comparisons"])]
    return "\n\n".join(part for part in parts if part)


def _comparisons(compared: Mapping[str, Any] | None) -> str:
    if not compared:
        return ""
    more = ["p (Holm)", "Verdict on ΔI"] if compared["verdicts"] else []
    head = ["Methods", "ΔI", f"95%, {compared['kind']}", "ΔE", "95%", "ΔI, each run", *more]
    rows = []
    for row in compared["rows"]:
        cells = [_text(row["name"]), *row["gain"], *row["error"], row["runs"]]
        rows.append([*cells, row["p"], row["verdict"]] if more else cells)
    return _table(head, rows)


def _again(run: Run, shown: Mapping[str, Any], final: str | None) -> str:
    lines = ["visatb run experiment.yaml"]
    if run.weights and final == "VisATB":
        lines += ["# or only the final run: python -m llava.train.train … " + _one_line(shown["weights"]["command"])]
    settings = shown["settings"]
    facts = [f"- {_text(name)} {_text(version)}" for name, version in settings["versions"]]
    facts += [f"- Machine: {_text(settings['machine'])}"] if settings["machine"] else []
    facts += [f"- Commit: {_code(settings['commit'])}"] if settings["commit"] else []
    fence = "`" * max(3, *(len(run_) + 1 for run_ in re.findall("`+", run.experiment_text)), 3)
    block = "```sh\n" + "\n".join(lines) + "\n```"
    return "\n\n".join([block, "\n".join(facts), f"{fence}yaml\n{run.experiment_text.rstrip()}\n{fence}"])


def _limits(run: Run, shown: Mapping[str, Any]) -> str:
    items = [
        *_limits_of_runs(shown["results"]),
        "Tested on the test sets named above and on nothing else; in particular not for safety, bias or robustness.",
        "The task weights hold for this base model, this data and these sampling rates.",
        "The licences of the base model and of the training data apply; they are not recorded here.",
        *(_text(note) for note in shown["notes"]),
    ]
    return "\n".join(f"- {item}" for item in items)


def _of(kind: str) -> str:
    return {"questions only": "validation questions only, with one training of each proxy"}.get(kind, kind)


def _limits_of_runs(results: Mapping[str, Any] | None) -> list[str]:
    runs = results["runs"] if results else 1
    if runs == 1:
        return ["One training run of each method, with one seed: differences between seeds are not known."]
    return [f"{runs} training runs of each method, each with a seed of its own; this checkpoint is the first of them."]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(text: str) -> str:
    """Text that Markdown leaves alone: one line, its special letters escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _one_line(text))


def _code(text: str) -> str:
    clean = _one_line(str(text)).replace("`", "'").replace("|", "¦")
    return f"`{clean}`" if clean else "–"


def _one_line(text: str) -> str:
    return " ".join(str(text).split())
