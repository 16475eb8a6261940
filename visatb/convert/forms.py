"""One record in each form. LLaVA's is the middle one: every conversion goes through it.

- LLaVA: `{"id", "image": path or [paths], "task", "conversations": [{"from", "value"}]}`
- messages: `{"id", "images": [paths], "channel", "messages": [{"role", "content"}]}`, as ms-swift and others read them;
  a truth of several references is the first, all of them standing in `references`
- ms-swift with weights: messages whose assistant turns have `loss_scale`
- LLaMA-Factory (v1): messages whose contents are lists of `{"type", "value"}`, and whose turns have `loss_weight`

Fields that a form does not know are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.errors import DataError
from llava.data.records import Record, record_images

_TO_ROLE = {"human": "user", "gpt": "assistant"}
_FROM_ROLE = {"user": "human", "human": "human", "assistant": "gpt", "gpt": "gpt"}
_LLAVA = ("id", "image", "task", "conversations")
_MESSAGES = ("id", "images", "image", "channel", "task", "messages")


def form_of(record: Record, name: str) -> str:
    """`llava` or `messages`; DataError for neither, or where it has turns that are none."""
    for key, form in (("conversations", "llava"), ("messages", "messages")):
        turns = record.get(key)
        if isinstance(turns, list):
            if not all(isinstance(turn, dict) for turn in turns):
                raise DataError(f"{name}: `{key}` must list objects")
            return form
    raise DataError(f"{name}: has neither `conversations` nor `messages` (it has: {', '.join(record)})")


def to_messages(record: Record, name: str) -> Record:
    """A LLaVA record as messages; its task becomes the channel."""
    result: Record = {} if record.get("id") is None else {"id": record["id"]}
    if record.get("task") is not None:
        result["channel"] = record["task"]
    result |= {key: value for key, value in record.items() if key not in _LLAVA}
    result["messages"] = [_message(turn, name) for turn in record["conversations"]]
    if images := record_images(record):
        result["images"] = images
    return result


def _message(turn: Mapping[str, Any], name: str) -> Record:
    role, value = _TO_ROLE.get(str(turn.get("from"))), turn.get("value")
    if role is None:
        raise DataError(f"{name}: a turn is from {turn.get('from')!r}, not from human or gpt")
    message: Record = {"role": role, **{key: part for key, part in turn.items() if key not in ("from", "value")}}
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return {**message, "content": value[0], "references": value}
    if not isinstance(value, str):
        raise DataError(f"{name}: a turn's `value` is no text")
    return {**message, "content": value}


def from_messages(record: Record, name: str) -> Record:
    """Messages as a LLaVA record; images that no text places stand before the first question."""
    images: list[str] = []
    turns = [_turn(message, images, name) for message in record["messages"]]
    given = record.get("images", record.get("image"))
    given = [] if given is None else [given] if isinstance(given, str) else list(given)
    images = [*given, *images]
    if not turns or not all(isinstance(image, str) for image in images):
        raise DataError(f"{name}: {'its images are no paths' if turns else 'it has no messages'}")
    marks = sum(turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in turns if isinstance(turn["value"], str))
    turns[0]["value"] = f"{DEFAULT_IMAGE_TOKEN}\n" * max(0, len(images) - marks) + turns[0]["value"]
    result: Record = {} if record.get("id") is None else {"id": record["id"]}
    if images:
        result["image"] = images[0] if len(images) == 1 else images
    task = record.get("channel", record.get("task"))
    if task is not None:
        result["task"] = task
    result |= {key: value for key, value in record.items() if key not in _MESSAGES}
    return result | {"conversations": turns}


def _turn(message: Mapping[str, Any], images: list[str], name: str) -> Record:
    role = message.get("role")
    if role not in _FROM_ROLE:
        raise DataError(
            f"{name}: LLaVA's form has user and assistant turns only, not {role!r}; take it out or merge it"
        )
    rest = {key: part for key, part in message.items() if key not in ("role", "content", "references")}
    value: Any = message.get("references")
    if value is None:
        value = "".join(_texts(message.get("content"), images, name))
    return {"from": _FROM_ROLE[role], "value": value, **rest}


def _texts(content: Any, images: list[str], name: str) -> Iterator[str]:
    """The text of a content; one in parts gives its images to `images` and leaves their marks."""
    if isinstance(content, str):
        yield content
        return
    for part in content if isinstance(content, list) else [None]:
        part = part if isinstance(part, dict) else {}
        kind = part.get("type")
        if kind == "text":
            yield str(part.get("text", part.get("value", "")))
        elif kind in ("image", "image_url"):
            found = part.get("image") or part.get("value") or part.get("image_url")
            found = found.get("url") if isinstance(found, dict) else found
            if found is not None:
                images.append(str(found))
            yield f"{DEFAULT_IMAGE_TOKEN}\n"
        else:
            raise DataError(f"{name}: a message's content is neither text nor a list of texts and images")


def task_weight(record: Record, weights: Mapping[str, float], name: str) -> float:
    """λ of a LLaVA record's task."""
    task = str(record.get("task"))
    if task not in weights:
        raise DataError(f"{name}: no weight for task {task!r}; the weights file has {', '.join(weights)}")
    return weights[task]


def to_swift(record: Record, weight: float, images: Path | None, name: str) -> Record:
    """A LLaVA record for ms-swift: `loss_scale` λ at every answer, images as absolute paths where a folder is given."""
    result = to_messages(record, name)
    for message in result["messages"]:
        if "references" in message:
            raise DataError(f"{name}: an answer of several references cannot be trained on")
        if message["role"] == "assistant":
            message["loss_scale"] = weight
    if "images" in result:
        result["images"] = [_absolute(image, images) for image in result["images"]]
    return result


def to_llama_factory(record: Record, weight: float, images: Path | None, name: str) -> Record:
    """A LLaVA record for LLaMA-Factory's v1 trainers: `loss_weight` λ at every answer, 0 at every question."""
    paths = iter(record_images(record))
    messages = []
    for message in to_swift(record, weight, images, name)["messages"]:
        answer = message["role"] == "assistant"
        content = list(_parts(message["content"], paths, images, name))
        messages.append({"role": message["role"], "content": content, "loss_weight": weight if answer else 0.0})
    if next(paths, None) is not None:
        raise DataError(f"{name}: it has more images than {DEFAULT_IMAGE_TOKEN} in its turns")
    return {"messages": messages}


def _parts(text: str, paths: Iterator[str], images: Path | None, name: str) -> Iterator[Record]:
    for index, piece in enumerate(text.split(DEFAULT_IMAGE_TOKEN)):
        if index:
            path = next(paths, None)
            if path is None:
                raise DataError(f"{name}: it has more {DEFAULT_IMAGE_TOKEN} in its turns than images")
            yield {"type": "image_url", "value": _absolute(path, images)}
        if piece.strip():
            yield {"type": "text", "value": piece.strip("\n") if index else piece}


def _absolute(image: str, images: Path | None) -> str:
    return image if images is None else str(images.resolve() / image)
