"""One built Academic report for all tests, and a headless browser."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.report.academic import make
from visatb.report import build

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def academic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished work folder; tests that change it must copy it."""
    return make(tmp_path_factory.mktemp("academic") / "work")


@pytest.fixture(scope="session")
def index(academic: Path) -> Path:
    """Its report's page."""
    return build(academic)


@pytest.fixture(scope="session")
def page(index: Path) -> str:
    return index.read_text(encoding="utf-8")


@pytest.fixture
def bare(academic: Path, tmp_path: Path) -> Path:
    """A copy of the work folder without scores, answers and trainings, to be changed."""
    keep = ("experiment.yaml", "matrix.json", "weights.json", "results.json", "cost.json")
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in keep:
        shutil.copy(academic / name, folder / name)
    return folder


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figure files: drawing them takes most of a report's time."""
    monkeypatch.setattr("visatb.report.page.write_figures", lambda *_: [])


@pytest.fixture(scope="session")
def dump() -> Callable[..., str]:
    """The DOM of a page after its scripts ran."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")

    def run(path: Path, profile: Path, fragment: str = "") -> str:
        window = "--window-size=1400,1000"
        command = [browser, *FLAGS, f"--user-data-dir={profile}", window, "--dump-dom", f"{path.as_uri()}{fragment}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return result.stdout

    return run
