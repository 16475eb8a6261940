"""The error that everything in `eval/` raises, and how commands say what is wrong."""

from __future__ import annotations

import sys


class EvaluationError(ValueError):
    """Bad input of an evaluator; the message names the file, the record and what would mend it."""


def bad_input(error: object) -> int:
    """Say on standard error what is wrong with a command's input; returns its exit status, 2."""
    sys.stderr.write(f"error: {error}\n")
    return 2
