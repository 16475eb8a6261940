"""The visatb command."""

import importlib
import subprocess
import sys
import time

import pytest

from visatb.cli import COMMANDS, main


def test_help_starts_at_once_and_without_torch():
    code = "import sys; from visatb.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 2  # some 0.05 s; the machine may be busy
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
