"""`visatb convert`: instruction data from one form into another, streaming, whole or not at all (docs/data.md)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from eval.errors import EvaluationError
from eval.files import write_lines
from eval.weights import read_weights
from llava.data.errors import DataError
from llava.data.records import read_records, record_name
from visatb.convert import forms
from visatb.convert.forms import Record
from visatb.experiment.records import write_records

logger = logging.getLogger(__name__)

FORMATS = ("llava", "messages", "parquet", "ms-swift", "llama-factory")
_WEIGHTED = ("ms-swift", "llama-factory")
_WARNING = (
    "%s does not train with the loss of VisATB: it multiplies each token's loss by λ, too, but normalises otherwise, "
    "not by the Σλ of the whole optimizer step. Divided by a count of tokens, λ also changes the step's size; divided "
    "by the weights of a micro-batch, λ cancels where that holds one task. Results will differ from `visatb train`."
)


def convert(
    source: Path,
    target: Path,
    to: str,
    images: Path | None = None,
    weights: Path | None = None,
    task: str | None = None,
) -> int:
    """Convert a file; returns the number of records.

    Raises:
        DataError: arguments that do not fit, or a record that the form cannot hold, named with its file.
    """
    if (weights is None) == (to in _WEIGHTED):
        raise DataError(f"--weights goes with --to {' and '.join(_WEIGHTED)}, and they need it")
    if target.exists() and target.resolve() == source.resolve():
        raise DataError("input and output are one file")
    records = _with_task(read(source, images), task)
    target.parent.mkdir(parents=True, exist_ok=True)
    if to == "llava":
        return write_records(target, (record for _, record in records))
    if to == "messages":
        return write_lines(target, (forms.to_messages(record, name) for name, record in records))
    if to == "parquet":
        from visatb.convert.tables import write_table

        return write_table(target, records, images)
    assert weights is not None
    logger.warning(_WARNING, to)
    weigh = forms.to_swift if to == "ms-swift" else forms.to_llama_factory
    given = _weights(weights)
    weighted = ((name, record, forms.task_weight(record, given, name)) for name, record in records)
    return write_lines(target, (weigh(record, weight, images, name) for name, record, weight in weighted))


def read(source: Path, images: Path | None) -> Iterator[tuple[str, Record]]:
    """The records of a file of any form in LLaVA's form, one at a time, each with its name."""
    if source.suffix == ".parquet":
        from visatb.convert.tables import read_table

        yield from read_table(source, images)
        return
    for raw in read_records(source):
        name = f"{source}, record {record_name(raw.content, raw.position)}"
        if not isinstance(raw.content, dict):
            raise DataError(f"{name}: not a record but a {type(raw.content).__name__}")
        messages = forms.form_of(raw.content, name) == "messages"
        yield name, forms.from_messages(raw.content, name) if messages else raw.content


def _with_task(records: Iterable[tuple[str, Record]], task: str | None) -> Iterator[tuple[str, Record]]:
    for name, record in records:
        yield name, {**record, "task": task} if task is not None and record.get("task") is None else record


def _weights(path: Path) -> dict[str, float]:
    """λ by task from a weights file."""
    try:
        return {task: float(weight) for task, weight in read_weights(path)["weights"].items()}
    except EvaluationError as error:
        raise DataError(f"no weights file: {error}") from error
