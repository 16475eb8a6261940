"""Question files: read and checked before a model is loaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.data.errors import REASONS, BadSampleError, DataError
from llava.data.foreign import no_conversations
from llava.data.images import ImageFolder
from llava.data.records import RawRecord, check_record, read_records, record_name
from llava.infer.prompts import Request

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_SHOWN = 5


@dataclass(frozen=True)
class QuestionFile:
    """A question file: its records as they stand in the file, and the request that each becomes (id: its index)."""

    path: Path
    records: list[dict[str, Any]]
    requests: list[Request]

    def name(self, index: int) -> str:
        """File, id and index of a record, for messages."""
        return f"{self.path}, record {record_name(self.records[index], index)} (no. {index})"

    def question_id(self, index: int) -> str:
        """`question_id`, else `id`, else the index in the file, as the evaluators have it."""
        record = self.records[index]
        return str(record.get("question_id", record.get("id", index)))

    def truth(self, index: int) -> str:
        """The answer that a record holds, of several the first; BadSampleError where it holds none."""
        value = self.records[index]["conversations"][1].get("value")
        text = value[0] if isinstance(value, list) and value else value
        if not isinstance(text, str) or not text.strip():
            raise BadSampleError("empty_answer", "`conversations[1].value` holds no answer to compute a loss of")
        return text

    def answered(self, answers: Sequence[str], generator: str) -> list[dict[str, Any]]:
        """The records with the answers in `conversations[1]`."""
        records = copy.deepcopy(self.records)
        for record, answer in zip(records, answers, strict=True):
            record["conversations"][1].update(generative_value=answer, generator=generator)
        return records


def read_questions(
    path: str | Path, image_folder: str | Path | None, max_samples: int | None = None, part: slice = slice(None)
) -> QuestionFile:
    """The first `max_samples` questions of a file; images are looked at for those in `part` of them only.

    Raises DataError listing what is wrong with the first few bad records and what would mend them.
    """
    images = None if image_folder is None else ImageFolder(image_folder)
    if images is not None and not Path(images.folder).is_dir():
        raise DataError(f"--image-folder {images.folder}: there is no such folder")
    file = QuestionFile(Path(path), [], [])
    problems: list[str] = []
    looked_at = range(*part.indices(10**18 if max_samples is None else max_samples))
    for raw in read_records(path):
        if raw.position == max_samples:
            break
        try:
            file.requests.append(_request(raw, images, raw.position in looked_at))
            file.records.append(raw.content)
        except BadSampleError as error:
            name = f"{path}, record {record_name(raw.content, raw.position)} (no. {raw.position})"
            problems.append(explain(name, error))
    if problems:
        more = [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n".join(problems[:_SHOWN] + more))
    if not file.records:
        raise DataError(f"{path}: holds no question")
    return file


def explain(name: str, error: BadSampleError) -> str:
    """One line: which record, what is wrong, what would mend it."""
    mend = REASONS.get(error.reason)
    return f"{name}: {error.detail}" + (f" ({mend})" if mend else "")


def _request(raw: RawRecord, images: ImageFolder | None, look: bool) -> Request:
    record = check_record(RawRecord(raw.position, _as_pair(raw.content), raw.offset), "", None)
    paths: list[str] = []
    for path in record.images:
        if images is None:
            raise BadSampleError("missing_image", f"the record has image {path}, but no --image-folder is given")
        paths.append(images.locate(path))
        if look:
            images.size(path)
    return Request(raw.position, record.turns[:1], paths, verbatim=raw.content.get("verbatim") is True)


def _as_pair(content: Any) -> Any:
    """The record with the task and the truth left out, which a question may lack or hold in any form."""
    if not isinstance(content, dict):
        return content
    if "conversations" not in content:
        raise no_conversations(content)
    turns = content.get("conversations")
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
        found = f"{len(turns)} turns" if isinstance(turns, list) else "no list of turns"
        raise BadSampleError(
            "not_one_pair", f"`conversations` must be exactly one human/assistant pair, found {found}; split the record"
        )
    roles = [_ROLES.get(str(turn.get("from")), str(turn.get("from"))) for turn in turns]
    if roles != ["human", "gpt"]:
        raise BadSampleError(
            "not_one_pair", f"`conversations` must be one human and one assistant turn, found {' and '.join(roles)}"
        )
    pair = [{"from": "human", "value": turns[0].get("value")}, {"from": "gpt", "value": "the truth"}]
    return {"id": content.get("id"), "task": "any", "image": content.get("image"), "conversations": pair}
