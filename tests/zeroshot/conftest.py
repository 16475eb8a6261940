"""The miniature of all benchmarks and one tiny checkpoint, made once."""

import pytest

from tests.tiny import tiny_llava
from tests.zeroshot.mini import official_layout


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """All benchmarks; tests that change files make their own."""
    return official_layout(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("checkpoint") / "tiny")
