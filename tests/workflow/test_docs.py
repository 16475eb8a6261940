"""docs/experiment.md names every setting, and its Python names exist."""

import importlib
import re
from pathlib import Path

import pytest

from visatb.experiment import schema

TEXT = (Path(__file__).parents[2] / "docs" / "experiment.md").read_text()


OTHERS = ("source", "guards", "model", "tasks", "subsets", "weighting", "repeats", "launcher", "overrides")
"""Fields of an experiment that are no setting by themselves: parts of several, and what its reader fills in."""


@pytest.mark.parametrize(
    ("part", "prefix"),
    [
        (schema.Experiment, ""),
        (schema.Model, "model."),
        (schema.Task, "tasks.T."),
        (schema.SubsetRates, "subsets."),
        (schema.Weighting, "weighting."),
        (schema.Repeats, "repeats."),
        (schema.Launcher, "launcher."),
    ],
)
def test_every_setting_is_explained(part, prefix):
    first_column = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    named = set()
    for cell in first_column:
        names = re.findall(r"`([^`]+)`", cell)
        named |= {names[0].rpartition(".")[0] + name if name.startswith(".") else name for name in names}
    for name in (field.alias or name for name, field in part.model_fields.items()):
        if name not in OTHERS:
            assert f"{prefix}{name}" in named, name


def test_python_names_exist():
    [(module, names)] = re.findall(r"^from (visatb\S*) import (.+)$", TEXT, re.MULTILINE)
    found = names.split(", ")
    assert len(found) == 4
    for name in found:
        assert callable(getattr(importlib.import_module(module), name))
