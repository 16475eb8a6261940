"""scripts_visatb/eval/*.sh: what they pass to the real parser, and what they say is missing."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval.registry import BENCHMARKS
from llava.eval.run import choose, make_parser

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "scripts_visatb" / "eval").glob("*.sh") if path.name != "common.sh")


def run(script, **variables):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    settings = kept | {"PYTHON": sys.executable} | {name: str(value) for name, value in variables.items()}
    return subprocess.run(["bash", script], env=settings, capture_output=True, text=True)


def dry_run(script, **variables):
    """The launcher's words and the command's."""
    done = run(script, DRY_RUN=1, **variables)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    cut = words.index("zeroshot") + 1
    return words[:cut], words[cut:]


def test_there_is_a_script_for_each_benchmark():
    assert {path.stem for path in SCRIPTS} == {*BENCHMARKS, "all"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_only_the_documented_variables(script, tmp_path):
    launcher, words = dry_run(script, CKPT="models/final", DATA_DIR=tmp_path, NUM_GPUS=0)
    assert launcher == [sys.executable, "-m", "visatb.cli", "zeroshot"]
    args = make_parser().parse_args(words)
    assert (args.checkpoint, args.data, args.output) == ("models/final", tmp_path, Path("outputs/zeroshot"))
    assert [one.name for one in choose(args.benchmarks)] == (
        list(BENCHMARKS) if script.stem == "all" else [script.stem]
    )
    assert not args.judge
    head = script.read_text()
    for word in ("# Command: ", "# Cost: ", "# Result: ", f"scripts_visatb/eval/{script.name}"):
        assert word in head


def test_all_variables(tmp_path):
    settings = {"CKPT": "m", "DATA_DIR": tmp_path, "OUTPUT_DIR": tmp_path / "a b", "MODEL_NAME": "VisATB", "JUDGE": 1}
    extra = {"MODEL_BASE": "base", "NUM_GPUS": 8, "EXTRA_ARGS": "--max-samples 3 --model-name 'of mine'"}
    launcher, words = dry_run(SCRIPTS[0], **settings, **extra)
    assert launcher[1:] == [
        *("-m", "llava.train.launch", "--nproc_per_node", "8", "--standalone"),
        *("--module", "visatb.cli", "zeroshot"),
    ]
    args = make_parser().parse_args(words)
    assert (args.output, args.model_name, args.model_base) == (tmp_path / "a b", "of mine", "base")
    assert (args.judge, args.max_samples) == (True, 3)
    documented = set(re.findall(r"^#   ([A-Z_]+)", (SCRIPTS[0].parent / "common.sh").read_text(), re.MULTILINE))
    assert documented == {*settings, *extra, "PYTHON", "DRY_RUN"}


@pytest.mark.parametrize("script", SCRIPTS[:3], ids=lambda path: path.stem)
def test_what_is_missing_is_said(script, tmp_path):
    done = run(script, DATA_DIR=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "set CKPT first" in done.stderr
    assert "set CKPT DATA_DIR first" in run(script).stderr
    done = run(script, CKPT="m", DATA_DIR=tmp_path / "nowhere")
    assert done.returncode == 2
    assert "DATA_DIR: there is no folder" in done.stderr


def test_a_script_runs(tmp_path):
    done = run(SCRIPTS[0], CKPT="m", DATA_DIR=tmp_path, NUM_GPUS=0, EXTRA_ARGS="--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(BENCHMARKS)


GUIDE = ROOT / "docs" / "zeroshot.md"


def test_the_guides_commands_are_known(tmp_path):
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("visatb zeroshot")]
    assert len(commands) == 3
    for words in commands:
        args = make_parser().parse_args(words)
        assert args.compare or choose(args.benchmarks)
    for line in lines:
        if line.startswith("CKPT="):
            assert (ROOT / shlex.split(line)[-1]).exists()


def test_the_guide_names_every_benchmark_option_and_folder():
    text = GUIDE.read_text()
    for name in BENCHMARKS:
        assert f"| `{name}` |" in text or name.startswith("llava_bench"), name
    for option in re.findall(r"`(--[a-z-]+)", text):
        assert option in make_parser().format_help() or option == "--zero", option
