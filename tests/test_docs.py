"""What the guides show: the code of extending.md runs, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
