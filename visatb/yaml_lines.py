"""YAML with the line of every value, so that an error in an experiment file can say where it stands."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Place = tuple[str | int, ...]


class ExperimentError(ValueError):
    """An experiment file, or what it names, is not as it should be; the message names file and line."""


@dataclass(frozen=True)
class Document:
    """A YAML file's content and the line (from 1) of each of its values by place, `("tasks", "VQAv2", "metric")`."""

    path: Path
    content: Any
    lines: dict[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int:
        """The line of a value; of the nearest one around it where the value itself is not in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def error(self, place: Place, text: str) -> ExperimentError:
        """The error that says `text` of the value at `place`."""
        name = ".".join(map(str, place))
        return ExperimentError(f"{self.path}:{self.line(place)}: {f'{name}: ' if name else ''}{text}")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; `2e-5` is a number here, as in every other language."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        ExperimentError: no file, no YAML, or a name that comes twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            document = Document(path, loader.construct_document(node) if node else None)
        finally:
            loader.dispose()
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise ExperimentError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if node:
        _collect(node, (), document)
    return document


def _collect(node: yaml.Node, place: Place, document: Document) -> None:
    document.lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect(item, (*place, index), document)
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            inner = (*place, key.value)
            document.lines[inner] = key.start_mark.line + 1
            if key.value in seen:
                raise document.error(inner, "is given twice")
            seen.add(key.value)
            _collect(value, inner, document)
