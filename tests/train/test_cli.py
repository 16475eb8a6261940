"""The visatb command."""

import importlib
import subprocess
import sys

import pytest

from llava.train import train
from visatb.cli import COMMANDS, main


def test_help_needs_no_torch():
    code = "import sys; from visatb.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)


def test_unknown_commands_are_usage_errors(capsys):
    assert main(["fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err
    assert main([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists(name):
    module, function = COMMANDS[name][0].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_arguments_and_exit_codes_pass_through(capsys):
    assert main(["train", "--model_name_or_path", "m"]) == 2
    assert capsys.readouterr().err.startswith("error: --data_path is missing")


def test_a_full_disk_is_one_line_and_other_errors_are_not_hidden(tmp_path, monkeypatch, capsys):
    (tmp_path / "d.json").write_text("[]")
    words = [
        "--model_name_or_path",
        "m",
        "--data_path",
        str(tmp_path / "d.json"),
        "--output_dir",
        str(tmp_path / "out"),
    ]

    def failing_with(text):
        def run(*arguments):
            raise RuntimeError(text)

        monkeypatch.setattr(train, "run", run)

    failing_with("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # torch.save's on a full disk
    assert train.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'out'}: no space is left")
    assert len(error.splitlines()) == 1
    failing_with("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        train.main(words)
