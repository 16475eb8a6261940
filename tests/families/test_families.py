"""Image-text families without a file of their own, each on its micro model, and what docs/models.md says of them."""

from itertools import product

import pytest
import transformers

from tests.families.checks import CHECKS, World, outcome
from tests.families.results import BEGIN, END, PAGE, read_results, table
from tests.families.table import FAMILIES

WHOLE = "qwen3_vl"
"""The family of which all checks but one are run each time; of the others two are."""


def _cases():
    for name, check in product(FAMILIES, CHECKS):
        fast = check in ("tokens", "loss") or (name == WHOLE and check != "resume")
        yield pytest.param(name, check, marks=[] if fast else [pytest.mark.slow])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    class Made(dict):
        def __missing__(self, name):
            self[name] = World(name, tmp_path_factory.mktemp(name))
            return self[name]

    return Made()


@pytest.mark.parametrize(("name", "check"), _cases())
def test_family(name, check, worlds):
    assert outcome(check, worlds[name]) == read_results()["families"][name][check]


def test_the_page_shows_the_results():
    results = read_results()
    assert list(results["families"]) == list(FAMILIES)
    assert results["transformers"] == transformers.__version__
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == table(results)
