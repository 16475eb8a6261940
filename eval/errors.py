"""The error that everything in `eval/` raises."""

from __future__ import annotations


class EvaluationError(ValueError):
    """Bad input of an evaluator; the message names the file, the record and what would mend it."""
