"""The loss of a question's own answer as a metric: how surprised a model is by the truth, token by token.

`inference_visatb.py --truth-loss` writes it in place of an answer. It takes one forward pass where an answer takes one
for each of its tokens, and varies less from question to question than what is right or wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar

from eval.answers import Sample
from eval.errors import EvaluationError
from eval.metrics import Metric
from eval.scores import Measure, Scored

_TEXT = re.compile(r"loss (\S+) over (\d+) tokens")


def loss_text(total: float, tokens: int) -> str:
    """A sum of token losses in nats, and how many tokens it is over, as they stand in an answer file."""
    return f"loss {total!r} over {tokens} tokens"


class TruthLoss(Metric):
    """Mean token loss of the truths, in nats: Σ loss / Σ tokens over all questions. Lower is better."""

    measures: ClassVar[tuple[Measure, ...]] = (Measure("loss", "token loss", "loss", higher_is_better=False),)
    checks_truths: ClassVar[bool] = False

    def score(self, samples: Sequence[Sample]) -> Scored:
        """Each question's mean token loss, weighted by its tokens."""
        values, weights = [], []
        for sample in samples:
            match = _TEXT.fullmatch(sample.prediction)
            total, tokens = (float(match[1]), int(match[2])) if match else (math.nan, 0)
            if not (math.isfinite(total) and tokens):
                raise EvaluationError(
                    f"record {sample.id}: {sample.prediction[:60]!r} is no loss of its truth; metric `loss` needs a "
                    "file that was made by `inference_visatb.py --truth-loss`"
                )
            values.append(total / tokens)
            weights.append(float(tokens))
        return Scored([self.measures[0].column(values, weights)], [False] * len(samples))
