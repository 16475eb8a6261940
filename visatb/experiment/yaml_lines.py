"""YAML with the line of every value, so that an error in an experiment file can say where it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Place = tuple[str | int, ...]

# Far above what an experiment needs, and little enough to be read within a second or so.
MOST_BYTES = 1 << 20
MOST_VALUES = 100_000
MOST_LEVELS = 40
MOST_DIGITS = 60
_UNFIT = re.compile("[\0\ud800-\udfff]")


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
    """YAML's safe loader; `2e-5` is a number here, as in every other language, and no text is taken for a date."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name is PyYAML's)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML's, but down to a limit: its time grows with the depth, its stack ends somewhere."""
        if self.level > MOST_LEVELS:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested more than {MOST_LEVELS} levels deep", mark)
        self.level += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.level -= 1


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        ExperimentError: no file, no YAML, a name that comes twice, or more (bytes, values, levels, digits) than any
            experiment needs and than can be read in good time.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ExperimentError(f"{path}: holds more than {MOST_BYTES:,} bytes; is it an experiment file?")
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            document = Document(path, None)
            if node:
                _Collector(document, loader).collect(node)
                document = Document(path, loader.construct_document(node), document.lines)
        finally:
            loader.dispose()
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise ExperimentError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    return document


class _Collector:
    """Notes the line of every value of a document, and refuses what could not be worked with.

    An alias is followed as often as it is used, as those who read the content will do: so values are counted that way.
    """

    def __init__(self, document: Document, loader: _Loader) -> None:
        self.document = document
        self.loader = loader
        self.values = 0

    def collect(self, node: yaml.Node, place: Place = ()) -> None:
        """Note the lines of a value and of all within; ExperimentError where one is not fit."""
        self.document.lines.setdefault(place, node.start_mark.line + 1)
        self.values += 1
        if self.values > MOST_VALUES:
            raise self.document.error(place, f"the file holds more than {MOST_VALUES:,} values, repeated ones included")
        if len(place) > MOST_LEVELS:
            raise self.document.error(place[:1], "is nested in itself")
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node, place)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.collect(item, (*place, index))
        if isinstance(node, yaml.MappingNode):
            self._collect_mapping(node, place)

    def _collect_mapping(self, node: yaml.MappingNode, place: Place) -> None:
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.document.error(place, "a name must be a text")
            inner = (*place, key.value)
            self.document.lines[inner] = key.start_mark.line + 1
            self._check_scalar(key, inner)
            if key.value in seen:
                raise self.document.error(inner, "is given twice")
            seen.add(key.value)
            self.collect(value, inner)

    def _check_scalar(self, node: yaml.ScalarNode, place: Place) -> None:
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and len(node.value) > MOST_DIGITS:
            raise self.document.error(place, f"a number of {len(node.value):,} digits")
        if _UNFIT.search(node.value):
            raise self.document.error(place, "holds a character that no text has: NUL, or half of a surrogate pair")
        if kind in ("merge", "value"):
            return
        try:
            self.loader.construct_object(node)
        except (ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise self.document.error(place, f"{node.value[:MOST_DIGITS]!r} is no {kind}") from error
