import pytest

from tests.train.workbench import Bench, make_bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("bench"))
