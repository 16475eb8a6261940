"""What the guides show: code runs, commands and their flags exist, links lead somewhere, the README's steps work."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.workflow.world import write_task
from transformers_patch.weighter import Float64, Int64, Weighter

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_example_weighter_works():
    [code] = re.findall(r"```python\n(class .*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {"Weighter": Weighter, "Float64": Float64, "Int64": Int64, "Any": Any, "np": np}
    exec(compile(code, "extending.md", "exec"), names)  # our own page
    weighter = names["InverseLoss"](3)
    weighter.observe(0, np.array([4.0, 1.0, 0.0]), np.array([2, 1, 0]))
    again = names["InverseLoss"](3)
    again.load_state_dict(weighter.state_dict())
    assert again.task_weights(1, np.array([1, 1, 1])) == pytest.approx(np.array([0.5, 1, 1]) * 3 / 2.5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_map_names_what_there_is():
    """Every path that the map or README's tree names exists, and every room of the tree is named."""
    text = (ROOT / "docs/architecture.md").read_text()
    for name in set(re.findall(r"`([\w./]+\.py)`", text)):
        assert (ROOT / name).is_file(), name
    [tree] = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    top = ""
    named = set()
    for line in tree.splitlines():
        paths = re.split(r"\s{2,}(?![\w.]+[/.])", line.strip())[0].split()
        top = paths[0] if not line.startswith(" ") else top
        named |= {path.strip("/") if not line.startswith(" ") else f"{top}{path}".strip("/") for path in paths}
    for name in named:
        assert (ROOT / name).exists(), name
    for package in ("llava", "visatb"):
        for folder in (ROOT / package).iterdir():
            assert not (folder / "__init__.py").is_file() or f"{package}/{folder.name}" in named, folder


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in a page's shell blocks, and of modules in its text, without what is set before."""
    text = page.read_text()
    yield from (shlex.split(command) for command in re.findall(r"`(python -m [^`]+)`", text))
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("  #")[0].split("&&"):
                words = shlex.split(command)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    yield words


@functools.cache
def help_of(*words: str) -> str:
    text = "--help_all" if words[-1] == "llava.train.train" else "--help"
    result = subprocess.run([sys.executable, *words, text], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def known_flags(words: list[str]) -> str | None:
    """The help text of one of our commands, None for what is not ours."""
    program, *rest = words
    if program == "visatb":
        names = ["llava.train.train"] if rest[0] == "train" else ["visatb.cli", rest[0]]
        return help_of("-m", *names, *(rest[1:2] if rest[0] == "prepare" else []))
    if program == "python" and rest[0].endswith(".py") and (ROOT / rest[0]).exists():
        return help_of(rest[0])
    if program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), f"there is no module {rest[1]}"
        return help_of(*rest[:2]) if any(word.startswith("--") for word in rest) else None
    return None


def check_commands(page: Path) -> None:
    for words in commands(page):
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file(), words
        flags = [word for word in words if word.startswith("--")]
        text = known_flags(words)
        if text is not None:
            unknown = [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", text)]
            assert not unknown, f"{' '.join(words)}: no {', '.join(unknown)}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks/README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_flags_exist(page):
    check_commands(page)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```bash\npython -m eval.qa -a x --no_such_flag\n```", "no --no_such_flag"),
        ("```bash\npython -m eval.no_such_module\n```", "no module eval.no_such_module"),
        ("Start it by `python -m eval.no_such_module`.", "no module eval.no_such_module"),
        ("```bash\npython eval/qa.py --no_such_flag\n```", "no --no_such_flag"),
    ],
)
def test_a_command_that_does_not_exist_is_found(tmp_path, text, fault):
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(AssertionError, match=fault):
        check_commands(tmp_path / "page.md")


def test_steps_of_the_readme(tmp_path):
    """A folder of data through the README's commands, with stand-ins for training and answering."""
    for number, task in enumerate(("colour", "shape")):
        # Few enough that the stand-ins' minis of a quarter do not answer everything rightly: λ needs a gain.
        write_task(tmp_path / "my_data", task, {"train": 32, "val": 12, "test": 10}, number)
    stand_ins = os.pathsep.join([str(ROOT / "tests/workflow"), str(ROOT)])
    steps = [words for words in commands(ROOT / "README.md") if words[0] == "visatb"]
    assert [words[1] for words in steps] == ["init", "validate", "plan", "run", "status"]
    for words in steps:
        module = (
            ["visatb.commands.validate"] if words[1] == "validate" else ["visatb.cli", words[1]]
        )  # a stand-in's name
        more = ["--cold"] if words[1] == "run" else []
        command = [sys.executable, "-m", *module, *words[2:], *more]
        environment = {**os.environ, "PYTHONPATH": stand_ins}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, (words, result.stdout, result.stderr)
        if words[1] == "init":
            file = tmp_path / "my.yaml"
            draft = yaml.safe_load(file.read_text())
            file.write_text(yaml.safe_dump(draft | {"model": {"path": "somewhere/7b"}}, sort_keys=False))
    assert (tmp_path / "outputs/my/report/index.html").exists()
    assert "10 of 10 jobs done" in result.stdout
