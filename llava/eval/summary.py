"""What a model scored on all benchmarks: one JSON file and a table; several models side by side, with ΔI_zero%."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.answers import safe_name
from eval.errors import EvaluationError
from eval.overall import Table, overall, zero_shot
from llava.data.errors import DataError
from llava.eval.benchmark import Benchmark, Result
from llava.eval.files import read_json
from llava.eval.registry import BENCHMARKS
from llava.infer.answers import write_json


@dataclass
class Summary:
    """The summary of one model, as its file holds it: benchmark → scores, counts, files.

    `run` is what the values depend on beside the questions. Benchmarks of an earlier call with the same `run` stay.
    """

    path: Path
    model: str
    run: dict[str, Any]
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, model: str, run: dict[str, Any]) -> Summary:
        """The summary at `path`, without benchmarks if it is not there or of another run."""
        held = read_json(path) if path.exists() else {}
        same = isinstance(held, dict) and held.get("run") == run
        return cls(path, model, run, held["benchmarks"] if same else {})

    def add(
        self,
        benchmark: Benchmark,
        count: int,
        result: Result | None,
        answers: Path,
        sent: Path | None,
        note: str | None,
    ) -> None:
        """Enter a benchmark; its score file is written beside the summary (`scores/`) where there are scores."""
        entry: dict[str, Any] = {"title": benchmark.title, "num_samples": count}
        if result is not None:
            entry |= _scores(result)
            content = {"task": benchmark.name, "model": self.model, "split": "test", **entry}
            del content["title"]
            name = f"{benchmark.name}_test-{count}_{safe_name(self.model)}.json"
            write_json(self.path.parent / "scores" / name, content)
        entry |= {"answers": str(answers)}
        entry |= {"submission": str(sent)} if sent else {}
        entry |= {"note": note} if note else {}
        self.benchmarks[benchmark.name] = entry

    def write(self) -> None:
        """Write the file, whole or not at all."""
        ordered = {name: self.benchmarks[name] for name in BENCHMARKS if name in self.benchmarks}
        write_json(self.path, {"model": self.model, "run": self.run, "benchmarks": ordered})

    def table(self) -> str:
        """One line per benchmark."""
        rows = [("benchmark", "score", "questions", "malformed")]
        for name in BENCHMARKS:
            if name in self.benchmarks:
                entry = self.benchmarks[name]
                rows.append((entry["title"], _shown(entry), str(entry["num_samples"]), _malformed(entry)))
        return f"{self.model}\n{_aligned(rows)}summary: {self.path}\n"


def read_summaries(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Summaries by model; DataError for a file that is none, or two of one model."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), dict) or "model" not in content:
            raise DataError(f"{path}: not a summary (visatb zeroshot writes summary_MODEL.json)")
        if content["model"] in found:
            raise DataError(f"{path}: a second summary of {content['model']}; name models apart with --model-name")
        found[content["model"]] = content
    return found


def compare(summaries: Mapping[str, Mapping[str, Any]], baseline: str) -> dict[str, Any]:
    """Chief values by method and benchmark, in a form that `eval/overall.py` reads, and ΔI_zero% (Eq. 9).

    Where ΔI_zero% cannot be had, `why_not` says what is missing. DataError if no method is the baseline.
    """
    if baseline not in summaries:
        raise DataError(f"no summary of the baseline {baseline!r}; there are {', '.join(summaries)} (--baseline)")
    methods = {
        method: {entry["title"]: _chief(entry) for entry in content["benchmarks"].values() if entry.get("scores")}
        for method, content in summaries.items()
    }
    comparison: dict[str, Any] = {"baseline": baseline, "methods": methods}
    titles = list(dict.fromkeys(title for row in methods.values() for title in row))
    values = {method: {(title, ""): value for title, value in row.items()} for method, row in methods.items()}
    try:
        partial = [method for method, content in summaries.items() if content.get("run", {}).get("max_samples")]
        if partial:
            raise EvaluationError(f"{', '.join(partial)}: a trial on the first questions only (--max-samples)")
        results = overall(zero_shot(Table(values, {(title, ""): True for title in titles})), baseline)
        comparison["delta_i_zero"] = {method: result.improvement for method, result in results.items()}
    except EvaluationError as error:
        comparison["why_not"] = str(error)
    return comparison


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """One line per method."""
    methods, gains = comparison["methods"], comparison.get("delta_i_zero")
    known = [benchmark.title for benchmark in BENCHMARKS.values()]
    titles = [title for title in known if any(title in row for row in methods.values())]
    rows = [("method", *titles, *(["ΔI_zero%"] if gains else []))]
    for method, row in methods.items():
        cells = [f"{row[title]:.2f}" if title in row else "-" for title in titles]
        rows.append((method, *cells, *([f"{gains[method]:.2f}"] if gains else [])))
    return _aligned(rows) + (f"no ΔI_zero%: {comparison['why_not']}\n" if "why_not" in comparison else "")


def _scores(result: Result) -> dict[str, Any]:
    scores: list[dict[str, Any]] = [
        {"metric": s.metric, "value": s.value, "stderr": s.stderr, "higher_is_better": True, "scale": s.scale}
        for s in result.scores
    ]
    scores[0] |= result.details
    return {"num_malformed": result.num_malformed, "scores": scores, "groups": result.groups}


def _chief(entry: Mapping[str, Any]) -> float:
    chief = entry["scores"][0]
    return float(chief["value"] * chief["scale"])


def _shown(entry: Mapping[str, Any]) -> str:
    if not entry.get("scores"):
        return entry.get("note") or "-"
    return ", ".join(f"{s['metric']} {s['value'] * s['scale']:.2f}" for s in entry["scores"])


def _malformed(entry: Mapping[str, Any]) -> str:
    return str(entry["num_malformed"]) if "num_malformed" in entry else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)
