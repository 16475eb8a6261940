"""Imports run one way: packages, and the rooms of visatb, import only what stands below them (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [{"visatb"}, {"llava"}, {"transformers_patch"}, {"eval"}]
ROOMS = [{"cli", "__init__"}, {"commands"}, {"workflow", "report", "convert"}, {"prepare", "workdir"}, {"experiment"}]
"""From above; what stands side by side does not import each other."""


def imports(file: Path) -> Iterator[str]:
    """The dotted names that a file imports, also within functions; of a package the name in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are written in full"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize(("folder", "within", "layers"), [(".", "", PACKAGES), ("visatb", "visatb.", ROOMS)])
def test_imports_run_downwards_only(folder, within, layers):
    level = {name: index for index, names in enumerate(layers) for name in names}
    for here in level:
        for file in [*(ROOT / folder).glob(f"{here}.py"), *(ROOT / folder / here).rglob("*.py")]:
            for name in imports(file):
                there = name.removeprefix(within).split(".")[0] if name.startswith(within) else here
                known = there == here or there not in level or level[here] < level[there]
                assert known, f"{file.relative_to(ROOT)} imports {name}, which does not stand below it"


def test_every_room_has_its_place():
    entries = (ROOT / "visatb").iterdir()
    assert {path.stem for path in entries if path.suffix == ".py" or list(path.glob("*.py"))} == set().union(*ROOMS)


class _Nameless(ast.NodeTransformer):
    """Takes local names away, so that the same code with other names is the same."""

    def visit_Name(self, node):
        return ast.Name("_", node.ctx)

    def visit_arg(self, node):
        return ast.arg("_")


def test_no_function_is_there_twice():
    """Of other names, too; `weighting_visatb.py` and the examples can be copied alone."""
    found = {}
    for folder in ("visatb", "llava", "eval", "transformers_patch"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef):
                    body = node.body[ast.get_docstring(node) is not None :]
                    code = ast.dump(_Nameless().visit(ast.Module(body, [])))
                    if len(code) > 250:
                        found.setdefault(code, []).append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert [names for names in found.values() if len(names) > 1] == []


NOT_OURS = {  # what other packages, or this one's tests, call so
    "_base_client": "openai, whose waits a test shortens",
    "_exit": "os",
    "_finalize_training": "transformers' Trainer, in which a test spoils weights",
    "_post": "the tests' own judge server",
    "_run_epoch": "transformers' Trainer, whose hooks a test names",
}


def private_names(file):
    """Names with one underscore that a test imports, or takes of something else than itself."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
            yield node.attr


def test_tests_reach_into_no_private_names():
    for file in (ROOT / "tests").rglob("*.py"):
        private = {name for name in private_names(file) if name.startswith("_") and not name.startswith("__")}
        assert private <= {*NOT_OURS, "_replace", "_fields", "_asdict"}, file.relative_to(ROOT)
