"""The metrics: one class and one registry line each. Values are fractions; CIDEr is as pycocoevalcap scales it."""

from __future__ import annotations

import importlib
import logging
import math
import re
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from typing import Any, ClassVar

from eval.answers import Sample
from eval.errors import EvaluationError
from eval.scores import Measure, Scored

logger = logging.getLogger(__name__)

METRICS = {
    "cider": "eval.metrics:Cider",
    "cider_ptb": "eval.metrics:CiderPTB",
    "em": "eval.metrics:ExactMatch",
    "iou": "eval.metrics:BoxIoU",
    "gleu": "eval.metrics:Gleu",
    "judge": "eval.judge:JudgeMetric",
    "mmvet": "eval.judge:MMVetMetric",
    "loss": "eval.losses:TruthLoss",
}

Box = tuple[float, float, float, float]
_NUMBER = r"\s*([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*"
_BOX = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")
_OVERSHOOT = 2  # coordinates of a box in fractions end here; no real box ends before pixel 2
_EXACT_DIGITS = 2048  # products of floats' shortest decimals, 10^±308 among them, have fewer
_SHOWN = 5


class Metric(ABC):
    """A metric scores all samples of an answer file at once. A prediction it cannot read scores 0 and is flagged."""

    measures: ClassVar[tuple[Measure, ...]]
    """What it gives, a column each, in this order."""
    checks_truths: ClassVar[bool] = True
    """Whether truths are scored as answers before training: not where any text is fit, or where scoring costs money."""

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Scored:
        """One value per sample and column; EvaluationError where a sample's truth is not fit for the metric."""


def metric_class(name: str) -> type[Metric]:
    """The class of the metric registered as `name`; EvaluationError if unknown or not installed."""
    if name not in METRICS:
        raise EvaluationError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    module, _, attribute = METRICS[name].partition(":")
    try:
        found: type[Metric] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise EvaluationError(f"metric {name!r}: its module ({module}) is not installed") from error
    return found


def load_metric(name: str, **options: Any) -> Metric:
    """The metric registered as `name`, built with `options`; EvaluationError if unknown or not installed."""
    return metric_class(name)(**options)


def find_measure(metric: str) -> Measure:
    """The measure of this name in score files; one that no registered metric gives goes by its name."""
    measures = (measure for name in METRICS for measure in metric_class(name).measures)
    return next((measure for measure in measures if measure.metric == metric), Measure(metric, metric, metric))


def is_blank(sample: Sample) -> bool:
    """Whether the model answered nothing at all."""
    return not sample.prediction.strip()


class Cider(Metric):
    """CIDEr (whitespace): pycocoevalcap's Cider on whitespace tokens as they are, one or several references."""

    measures = (Measure("cider", "CIDEr (whitespace)", "CIDEr"),)
    checks_truths = False

    def score(self, samples: Sequence[Sample]) -> Scored:
        """Per-sample CIDEr; its document frequencies come from the references of all samples together."""
        from pycocoevalcap.cider.cider import Cider as CocoCider  # numpy comes with it: only when needed

        if len(samples) == 1:
            logger.warning("CIDEr of a single record is 0 by its definition (every n-gram is in every document)")
        references = self.tokenize([list(sample.references) for sample in samples])
        predictions = self.tokenize([[sample.prediction] for sample in samples])
        if not any(text.split() for texts in references for text in texts):
            raise EvaluationError("CIDEr: after tokenisation no reference has a word left")
        _, values = CocoCider().compute_score(dict(enumerate(references)), dict(enumerate(predictions)))
        return Scored([self.measures[0].column([float(v) for v in values])], [is_blank(s) for s in samples])

    def tokenize(self, texts: list[list[str]]) -> list[list[str]]:
        """The texts with tokens parted by whitespace; here: as they are."""
        return texts


class CiderPTB(Cider):
    """CIDEr (PTB): the COCO variant, lower-cased Penn Treebank tokens without punctuation; needs Java."""

    measures = (Measure("cider_ptb", "CIDEr (PTB)", "CIDEr (PTB)"),)

    def __init__(self) -> None:
        """EvaluationError where no Java is found, before any work is done."""
        if shutil.which("java") is None:
            raise EvaluationError(
                "CIDEr on PTB tokens needs Java (`java` on the PATH); without it use whitespace tokens"
            )

    def tokenize(self, texts: list[list[str]]) -> list[list[str]]:
        """Tokenised by the Stanford tokenizer that pycocoevalcap ships."""
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        # The tool answers line by line, so a text must be one line, and blank ones would shift the lines after them.
        lines = {(i, j): " ".join(text.split()) for i, row in enumerate(texts) for j, text in enumerate(row)}
        captions = {key: [{"caption": line}] for key, line in lines.items() if line}
        try:
            tokens = PTBTokenizer().tokenize(captions) if captions else {}
        except OSError as error:
            raise EvaluationError(f"CIDEr on PTB tokens: the Java tokenizer could not be run ({error})") from error
        if set(tokens) != set(captions):
            raise EvaluationError("CIDEr on PTB tokens: the Java tokenizer failed (its own message stands above)")
        return [[tokens.get((i, j), [""])[0] for j in range(len(row))] for i, row in enumerate(texts)]


class ExactMatch(Metric):
    """Exact match after stripping, lower-casing and dropping one final full stop, on both sides."""

    measures = (Measure("em", "exact match", "EM", percent=True),)

    def score(self, samples: Sequence[Sample]) -> Scored:
        """1 where the prediction equals any reference, else 0; an empty answer is malformed."""
        malformed = [is_blank(sample) for sample in samples]
        hits = [
            not blank and normalize_answer(sample.prediction) in {normalize_answer(text) for text in sample.references}
            for sample, blank in zip(samples, malformed, strict=True)
        ]
        return Scored([self.measures[0].column([float(hit) for hit in hits])], malformed)


def normalize_answer(text: str) -> str:
    """Strip, lower-case, drop one final full stop."""
    return text.strip().lower().removesuffix(".")


class BoxIoU(Metric):
    """Grounding: share of boxes with IoU > 0.5 (the paper's figure), and mean IoU; boxes as [x1, y1, x2, y2]."""

    measures = (
        Measure("iou@0.5", "IoU > 0.5", "IoU > 0.5", percent=True),
        Measure("mean_iou", "mean IoU", "mean IoU", percent=True),
    )

    def score(self, samples: Sequence[Sample]) -> Scored:
        """The best box among the references counts.

        A record whose truth is a box without area (or with its corners swapped) scores 0, as every answer's IoU with
        it is, and is flagged and named; EvaluationError if a reference is no box at all, or if no truth has an area.
        """
        truths = [_truths(sample) for sample in samples]
        overlaps = [_overlap(sample, boxes) for sample, boxes in zip(samples, truths, strict=True)]
        unfit = [sample.id for sample, boxes in zip(samples, truths, strict=True) if not boxes]
        if len(unfit) == len(samples):
            raise EvaluationError(f"record id {unfit[0]}: its truth is a box without area, and so is every other one")
        details = {"num_unfit_truths": len(unfit)} if unfit else {}
        pairs = [pair or (0.0, 0.0) for pair in overlaps]
        share, mean = self.measures
        columns = [
            share.column([hit for hit, _ in pairs], details=details),
            mean.column([value for _, value in pairs], details=details),
        ]
        return Scored(columns, [pair is None for pair in overlaps], _named(unfit))


def _truths(sample: Sample) -> list[Box]:
    """The references that are boxes with an area; EvaluationError if one is no box at all."""
    for text in sample.references:
        if not _BOX.search(text):
            raise EvaluationError(f"record id {sample.id}: the truth {text!r} is no box [x1, y1, x2, y2]")
    return [box for text in sample.references if (box := parse_box(text))]


def _overlap(sample: Sample, truths: Sequence[Box]) -> tuple[float, float] | None:
    """Whether the answer is a hit (0 or 1), and its IoU; None where nothing can be compared."""
    answer = parse_box(sample.prediction)
    fit = [] if answer is None else [truth for truth in truths if same_scale(answer, truth)]
    if answer is None or not fit:
        return None
    return float(any(is_hit(answer, truth) for truth in fit)), max(iou(answer, truth) for truth in fit)


def _named(unfit: Sequence[str]) -> list[str]:
    if not unfit:
        return []
    shown = ", ".join(unfit[:_SHOWN]) + (", …" if len(unfit) > _SHOWN else "")
    return [
        f"records with a truth without area (or with its corners swapped): {len(unfit)}, which score 0 whatever was "
        f"answered: id {shown}; correct or remove them"
    ]


def parse_box(text: str) -> Box | None:
    """The first [x1, y1, x2, y2] in `text`; None if there is none, or not with x1 < x2, y1 < y2 and a finite area."""
    match = _BOX.search(text)
    if match is None:
        return None
    x1, y1, x2, y2 = (float(number) for number in match.groups())
    area = (x2 - x1) * (y2 - y1)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 and 0 < area < math.inf else None


def same_scale(answer: Box, truth: Box) -> bool:
    """Whether both boxes are fractions of the image or both in pixels.

    Fractions may overshoot the image, in a truth by rounding, in an answer by more; pixels begin where they cannot.
    """
    return max(answer) <= _OVERSHOOT if max(truth) < _OVERSHOOT else max(answer) > 1


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, any unit as long as it is the same."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union


def is_hit(a: Box, b: Box) -> bool:
    """Whether IoU > 1/2, to the last decimal as written: in binary, an IoU of exactly 1/2 may come out above it."""
    with localcontext(Context(prec=_EXACT_DIGITS)):
        ax1, ay1, ax2, ay2, bx1, by1, bx2, by2 = (Decimal(repr(number)) for number in (*a, *b))
        width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
        both = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
        return width > 0 and height > 0 and 3 * width * height > both


class Gleu(Metric):
    """Corpus Google-BLEU on whitespace tokens: matched n-grams (n = 1 to 4) over the larger of the two counts."""

    measures = (Measure("gleu", "GLEU", "GLEU", percent=True),)

    def score(self, samples: Sequence[Sample]) -> Scored:
        """Sentence GLEU against the best reference, weighted by its n-gram count: the mean is corpus GLEU."""
        pairs = [max((gleu_counts(s.prediction, text) for text in s.references), key=_ratio) for s in samples]
        column = self.measures[0].column([_ratio(pair) for pair in pairs], [float(total) for _, total in pairs])
        return Scored([column], [is_blank(sample) for sample in samples])


def gleu_counts(prediction: str, reference: str, longest: int = 4) -> tuple[int, int]:
    """(n-grams in common, the larger n-gram count of the two texts), over n = 1 to `longest`."""
    predicted, wanted = _ngrams(prediction.split(), longest), _ngrams(reference.split(), longest)
    return (predicted & wanted).total(), max(predicted.total(), wanted.total())


def _ngrams(words: list[str], longest: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))


def _ratio(counts: tuple[int, int]) -> float:
    return counts[0] / counts[1] if counts[1] else 0.0
