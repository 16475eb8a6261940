"""The guides' commands parse, and their examples are what the code takes."""

import json
import re
import shlex
from pathlib import Path

import pytest

import weighting_visatb
from eval import caption, caption_list, gleu, grounding, judge, overall, qa
from tests.weighting.test_method import solved

DOCS = Path(weighting_visatb.__file__).parent / "docs"
COMMANDS = {
    "weighting_visatb.py": weighting_visatb,
    **{
        f"eval/{m.__name__.rpartition('.')[2]}.py": m
        for m in (caption, caption_list, gleu, grounding, judge, overall, qa)
    },
}


def commands():
    for name in ("weighting.md", "evaluation.md"):
        for block in re.findall(r"```bash\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL):
            lines = (line for line in block.replace("\\\n", " ").splitlines() if line.startswith("python"))
            yield from (line for line in lines if line.split()[1] in COMMANDS)  # tests/test_docs.py has the others


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(tmp_path, monkeypatch, capsys, command):
    """In an empty folder each of them gets as far as the missing input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_MODEL", "a-judge")
    monkeypatch.setenv("OPENAI_API_KEY", "no-key")
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    assert COMMANDS[script].main(arguments) == 2
    assert re.search("No such file|no such folder", capsys.readouterr().err)


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_example_matrices_are_some():
    for block in blocks("weighting.md", "json"):
        content = solved(json.loads(block), bootstrap=50)
        assert set(content["intervals"]) == {"A", "B"}


def test_the_example_answers_and_table_are_scored(tmp_path, capsys):
    answers, score, *_ = blocks("evaluation.md", "json")
    (tmp_path / "GQA_val-1_mini.json").write_text(answers)
    assert qa.main(["-a", str(tmp_path / "GQA_val-1_mini.json"), "--output", str(tmp_path / "s.json")]) == 0
    assert set(json.loads(score)) == set(json.loads((tmp_path / "s.json").read_text()))
    (tmp_path / "t.csv").write_text(blocks("evaluation.md", "text")[0], encoding="utf-8")
    assert overall.main([str(tmp_path / "t.csv")]) == 0
    assert "EW" in capsys.readouterr().out
