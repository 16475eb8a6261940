"""Score open answers by a language model: `python eval/judge.py -a ANSWERS [--dry_run] [--output SCORE]`.

`--protocol review` (LLaVA-Bench): the judge scores reference and answer from 1 to 10; the figure is the answers' sum of
scores in percent of the references', over all and by category. `--protocol mmvet`: the judge grades the answer from 0
to 1 against the truth; the figure is the mean in percent, over all and by capability.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, from anywhere: the package's parent folder must be on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.answers import Sample, read_answers
from eval.cli import make_parser, score_answers, summary
from eval.errors import EvaluationError, bad_input
from eval.judge_client import OPENAI, JudgeSettings
from eval.judge_panel import Judgement, Panel, Question
from eval.judge_prompts import (
    GRADE_REQUEST,
    REVIEW_REQUEST,
    Contexts,
    Rules,
    category,
    grade_messages,
    read_grade,
    read_review,
    review_messages,
)
from eval.metrics import Metric, is_blank
from eval.scores import Measure, Scored

logger = logging.getLogger(__name__)

Groups = dict[str, dict[str, list[int]]]  # kind of group ("categories", …) → group → its samples' places


class _Judged(Metric):
    """What both protocols share: questions to a panel, verdicts to a column, and the column's details.

    A question without a verdict (refused, or not one that can be read in all attempts) is flagged and counted, and
    stands outside the figure (weight 0): it says something of the judge, not of the answer.
    """

    checks_truths = False
    panel: Panel

    def score(self, samples: Sequence[Sample]) -> Scored:
        """One column; EvaluationError where the judge fails, or gives no verdict at all."""
        asked = [place for place, sample in enumerate(samples) if self.needs_judge(sample)]
        judged = self.panel.judge([self.question(samples[place]) for place in asked])
        judgements: list[Judgement | None] = [None] * len(samples)
        for place, judgement in zip(asked, judged, strict=True):
            judgements[place] = judgement
        pairs = [self.value(judgement) for judgement in judgements]
        missing = [judgement is not None and judgement.verdict is None for judgement in judgements]
        if all(missing):
            raise EvaluationError(f"the judge gave no verdict on any answer; its replies are in {self._cache}")
        if any(missing):
            logger.warning("%d of %d answers without a verdict, left out", sum(missing), len(samples))
        values, weights = [value for value, _ in pairs], [weight for _, weight in pairs]
        column = self.measures[0].column(values, weights, self._details(samples, judgements, pairs))
        return Scored([column], [lost or is_blank(sample) for lost, sample in zip(missing, samples, strict=True)])

    def estimate(self, samples: Sequence[Sample], price: tuple[float, float] | None = None) -> str:
        """What scoring will take, in words; nothing is asked."""
        questions = [self.question(sample) for sample in samples if self.needs_judge(sample)]
        return self.panel.estimate(questions).text(price)

    @abstractmethod
    def question(self, sample: Sample) -> Question:
        """What the judge is asked about a sample."""

    @abstractmethod
    def value(self, judgement: Judgement | None) -> tuple[float, float]:
        """(value, weight) of a judgement, None for an answer that needed none."""

    @abstractmethod
    def groups(self, samples: Sequence[Sample]) -> Groups:
        """The parts of the samples that have figures of their own."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What the score file says of the way of judging."""

    def needs_judge(self, sample: Sample) -> bool:
        """Whether only the judge can tell what an answer is worth."""
        return True

    @property
    def _cache(self) -> Path:
        return self.panel.settings.cache

    def _details(
        self, samples: Sequence[Sample], judgements: Sequence[Judgement | None], pairs: Sequence[tuple[float, float]]
    ) -> dict[str, Any]:
        given = [judgement for judgement in judgements if judgement]
        replies = [reply for judgement in given for reply in judgement.replies]
        verdicts = [judgement.verdict for judgement in given if judgement.verdict]
        settings = self.panel.settings
        return {
            "judge": {
                "model": settings.model,
                "served_by": sorted({reply.served_by for reply in replies if reply.served_by}),
                "base_url": settings.base_url,
                "request": self.panel.request,
                "attempts": settings.attempts,
                **self.protocol(),
                "num_judged": len(verdicts),
                "num_refused": sum(judgement.refused for judgement in given),
                "num_unreadable": sum(not judgement.refused and judgement.verdict is None for judgement in given),
                "num_replies": len(replies),
                "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
                "completion_tokens": sum(reply.completion_tokens for reply in replies),
                **{
                    kind: {group: self._figures(judgements, pairs, places) for group, places in groups.items()}
                    for kind, groups in self.groups(samples).items()
                },
            }
        }

    def _figures(
        self, judgements: Sequence[Judgement | None], pairs: Sequence[tuple[float, float]], places: Iterable[int]
    ) -> dict[str, Any]:
        """A group's figures; its value is None where no verdict fell in it."""
        known = [place for place in places if pairs[place][1]]
        column = self.measures[0].column([pairs[p][0] for p in known], [pairs[p][1] for p in known])
        figures: dict[str, Any] = {
            "num_judged": len(known),
            "value": column.mean() if known else None,
            "stderr": column.stderr() if known else None,
        }
        verdicts = [judgement.verdict for p in known if (judgement := judgements[p]) and judgement.verdict]
        return figures | self.means(verdicts)

    def means(self, verdicts: Sequence[tuple[float, ...]]) -> dict[str, float]:
        """Further figures of a group."""
        return {}


class JudgeMetric(_Judged):
    """Review of LLaVA-Bench: 100·Σ score of the answer ÷ Σ score of the reference (paper, Table 7)."""

    measures = (Measure("judge", "Judged, % of the reference", "judged"),)

    def __init__(
        self, settings: JudgeSettings | None = None, rule: Path | None = None, context: Path | None = None
    ) -> None:
        """What is not given comes from the environment: JUDGE_MODEL, JUDGE_RULE, JUDGE_CONTEXT, …."""
        self.panel = Panel(settings or JudgeSettings.from_environment(), REVIEW_REQUEST, read_review)
        self._rules = Rules(rule or _path_from("JUDGE_RULE"))
        self._contexts = Contexts(context or _path_from("JUDGE_CONTEXT"))

    def question(self, sample: Sample) -> Question:
        """The review of one answer beside its (first) reference."""
        context = self._contexts.find(sample)
        rule = self._rules.find(category(sample), context)
        return Question(f"record id {sample.id}", review_messages(sample, rule, context))

    def value(self, judgement: Judgement | None) -> tuple[float, float]:
        """Percent of the reference's score, weighted by it: the weighted mean is the ratio of the sums."""
        if judgement is None or judgement.verdict is None:
            return 0.0, 0.0
        reference, model = judgement.verdict
        return 100 * model / reference, reference

    def groups(self, samples: Sequence[Sample]) -> Groups:
        """The categories."""
        return {"categories": _group(samples, lambda sample: [category(sample)])}

    def protocol(self) -> dict[str, Any]:
        """The rules by name."""
        return {"protocol": "review", "rule": self._rules.path.name if self._rules.path else "built-in"}

    def means(self, verdicts: Sequence[tuple[float, ...]]) -> dict[str, float]:
        """Mean scores on the scale of 1 to 10."""
        if not verdicts:
            return {}
        reference, model = (sum(column) / len(verdicts) for column in zip(*verdicts, strict=True))
        return {"mean_reference": reference, "mean_model": model}


class MMVetMetric(_Judged):
    """MM-Vet: 100·mean grade; by capability and by combination of capabilities where records say `capability`."""

    measures = (Measure("mmvet", "MM-Vet, %", "judged"),)

    def __init__(self, settings: JudgeSettings | None = None) -> None:
        """What is not given comes from the environment."""
        self.panel = Panel(settings or JudgeSettings.from_environment(), GRADE_REQUEST, read_grade)

    def question(self, sample: Sample) -> Question:
        """The grade of one answer."""
        return Question(f"record id {sample.id}", grade_messages(sample))

    def needs_judge(self, sample: Sample) -> bool:
        """A blank answer has grade 0."""
        return not is_blank(sample)

    def value(self, judgement: Judgement | None) -> tuple[float, float]:
        """The grade in percent."""
        if judgement is None:
            return 0.0, 1.0
        return (100 * judgement.verdict[0], 1.0) if judgement.verdict else (0.0, 0.0)

    def groups(self, samples: Sequence[Sample]) -> Groups:
        """The capabilities, of which a question may need several, and their combinations."""
        if not any(sample.record.get("capability") for sample in samples):
            return {}
        return {
            "capabilities": _group(samples, _capabilities),
            "combinations": _group(samples, lambda sample: ["+".join(sorted(_capabilities(sample)))]),
        }

    def protocol(self) -> dict[str, Any]:
        """The prompt is our own."""
        return {"protocol": "mmvet", "rule": "built-in"}


def _capabilities(sample: Sample) -> list[str]:
    said = sample.record.get("capability", [])
    if not isinstance(said, list) or not all(isinstance(name, str) for name in said):
        raise EvaluationError(f"record id {sample.id}: `capability` must be a list of texts")
    return said


def _group(samples: Sequence[Sample], names: Callable[[Sample], Iterable[str]]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        for name in names(sample):
            groups.setdefault(name, []).append(place)
    return dict(sorted(groups.items()))


def _path_from(variable: str) -> Path | None:
    said = os.environ.get(variable)
    return Path(said) if said else None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    for name in ("httpx", "httpx2"):  # one line for each request
        logging.getLogger(name).setLevel(logging.WARNING)
    arguments = _parser().parse_args(argv)
    try:
        metric = _build(arguments)
        if arguments.dry_run:
            samples = read_answers(arguments.answers)
            _say(f"judge: {metric.panel.settings.model} at {metric.panel.settings.base_url}")
            _say(metric.estimate(samples, arguments.price and tuple(arguments.price)))
            return 0
        evaluation = score_answers(arguments, metric)
    except EvaluationError as error:
        return bad_input(error)
    _say(summary(evaluation))
    _say(_table(evaluation.scored.columns[0].details["judge"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("Open answers, scored by a language model.")
    add = parser.add_argument
    add("--protocol", choices=["review", "mmvet"], default="review", help="LLaVA-Bench's review, or MM-Vet's grades")
    add("--judge_model", metavar="NAME", help="the judge (default: JUDGE_MODEL)")
    add(
        "--base_url", metavar="URL", help=f"its endpoint (default: OPENAI_BASE_URL, else {OPENAI}); key: OPENAI_API_KEY"
    )
    add("--rule", type=Path, metavar="F", help="review rules, as LLaVA's rule.json (default: JUDGE_RULE, else our own)")
    add("--context", type=Path, metavar="F", help="descriptions of the images (JSONL; default: JUDGE_CONTEXT)")
    add("--request", type=json.loads, metavar="JSON", help="fields of the request, over the protocol's own; null: none")
    add("--cache", type=Path, metavar="F", help="where replies are kept (default: JUDGE_CACHE, else the user's cache)")
    add("--concurrency", type=int, metavar="N", help="requests at a time (default: JUDGE_CONCURRENCY, else 8)")
    add("--attempts", type=int, metavar="N", help="replies to a question until one holds a verdict (default: 3)")
    add("--retries", type=int, metavar="N", help="further tries of a request that failed (default: 8)")
    add("--timeout", type=float, metavar="S", help="seconds for one try (default: 120)")
    add("--dry_run", "--dry-run", action="store_true", help="say what it will take, and ask nothing")
    add("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="dollars for a million tokens, for --dry_run")
    return parser


def _build(arguments: argparse.Namespace) -> _Judged:
    names = ("base_url", "request", "cache", "concurrency", "attempts", "retries", "timeout")
    given = {name: getattr(arguments, name) for name in names}
    settings = JudgeSettings.from_environment(model=arguments.judge_model, **given)
    if arguments.protocol == "review":
        return JudgeMetric(settings, arguments.rule, arguments.context)
    if arguments.rule or arguments.context:
        raise EvaluationError("--rule and --context belong to --protocol review")
    return MMVetMetric(settings)


def _table(details: Mapping[str, Any]) -> str:
    lines = [f"judge: {details['model']}, {details['num_judged']} judged, {details['num_refused']} refused, "]
    lines[0] += f"{details['num_unreadable']} without a verdict that can be read"
    for kind in ("categories", "capabilities", "combinations"):
        for name, figures in details.get(kind, {}).items():
            value = "-" if figures["value"] is None else f"{figures['value']:.1f}"
            lines.append(f"  {name}: {value} ({figures['num_judged']} judged)")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
