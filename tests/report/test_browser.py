"""The page in headless Chromium: its scripts run under its own policy, λ as in Python, no sideways scroll, keys."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.report.academic import HOSTILE, TASKS
from weighting_visatb import visatb_weights

Dump = Callable[..., str]
# A window cannot be made as narrow as a phone, a frame can.
FRAME = """<!doctype html><iframe src="page.html#theme=light" style="width: WIDTHpx; height: 900px; border: 0"></iframe>
<pre id="found"></pre>
<script>addEventListener("message", (event) => { document.getElementById("found").textContent = event.data; });</script>
"""
# Runs after the page's own script, in a copy without the policy that would forbid it.
PROBE = """
<script>
(() => {
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const focused = () => document.activeElement.getAttribute("aria-label") || document.activeElement.id;
  const found = { width: innerWidth, scroll: document.documentElement.scrollWidth, keys: [] };
  found.wide = [...document.querySelectorAll("main *")].filter((e) =>
    !e.closest(".wide, svg, pre, .hidden, .track-cell") && e.getBoundingClientRect().right > innerWidth + 1
  ).map((e) => e.tagName + "." + e.className);
  for (const key of ["j", "j", "k", "n", "j", "p", "/"]) { press(key); found.keys.push(focused()); }
  for (const key of ["Escape", "j"]) { press(key); found.keys.push(focused()); }
  const before = document.querySelectorAll(".question").length;
  const search = document.getElementById("b-search");
  search.value = "no such words"; search.dispatchEvent(new Event("input"));
  found.searched = [before, document.querySelectorAll(".question").length];
  search.value = ""; search.dispatchEvent(new Event("input"));
  const filter = document.getElementById("b-filter");
  found.filters = [...filter.options].map((o) => {
    filter.value = o.value; filter.dispatchEvent(new Event("change"));
    return [o.textContent, Number(document.getElementById("b-status").textContent.split(" ")[0])];
  });
  const slider = document.getElementById("w-a0");
  slider.value = 0.7; slider.dispatchEvent(new Event("input"));
  found.alpha = [0, 1, 2].map((k) => Number(document.getElementById("w-a" + k).value));
  document.getElementById("w-auto").click();
  found.auto = [document.getElementById("w-t-out").textContent, document.getElementById("w-range").textContent];
  document.getElementById("theme").click();
  found.theme = document.documentElement.dataset.theme;
  parent.postMessage(JSON.stringify(found), "*");
})();
</script>
"""


@pytest.fixture(scope="module")
def probed(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert open_page != page
    path = tmp_path_factory.mktemp("probed") / "page.html"
    path.write_text(open_page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [390, 1280])
def test_layout_and_keys(probed: Path, dump: Dump, tmp_path: Path, width: int) -> None:
    frame = probed.with_name(f"frame-{width}.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    dom = dump(frame, tmp_path)
    match = re.search(r'<pre id="found">(.+?)</pre>', dom, re.S)
    assert match
    found = json.loads(html.unescape(match.group(1)))
    assert found["width"] == width
    assert found["scroll"] == width
    assert found["wide"] == []
    labels = [f"Question {n} of 24" for n in (1, 2, 1)]
    assert found["keys"][:3] == labels
    assert found["keys"][4] == "Question 7 of 24"  # the second page's first
    assert found["keys"][6] == "b-search"
    assert found["keys"][7] == ""  # Escape leaves the field, and j is a key again, not a letter
    assert found["keys"][8].startswith("Question ")
    assert found["searched"] == [6, 0]
    counts = dict(found["filters"])
    assert counts["all questions"] == 24
    assert counts["VisATB better than EW"] + counts["VisATB worse than EW"] + counts["VisATB and EW alike"] == 24
    assert found["alpha"] == pytest.approx([0.7, 0.1, 0.2])
    assert "within the advised" in found["auto"][1]
    assert found["theme"] == "dark"


def test_weights_as_in_python(index: Path, academic: Path, dump: Dump, tmp_path: Path) -> None:
    weights = json.loads((academic / "weights.json").read_text())
    parts = weights["mean_contributions"]
    vectors = (list(parts["out"].values()), list(parts["in"].values()), list(weights["difficulties"].values()))
    for t, alpha in ((0.5, (0.25, 0.25, 0.5)), (0.137, (0.5, 0.3, 0.2))):
        dom = dump(index, tmp_path, f"#t={t}&alpha={'/'.join(map(str, alpha))}")
        shown = [float(value) for value in re.findall(r'<td class="num" data-value="([\d.]+)"', dom)]
        np.testing.assert_allclose(shown, visatb_weights(*(np.array(v) for v in vectors), t, alpha), rtol=1e-12)
        command = re.search(r'<code id="w-command">(.*?)</code>', dom)
        assert command
        rounded = " ".join(f"{value:.4f}" for value in shown)
        assert command.group(1) == f"--task_names {' '.join(TASKS)} ShareGPT --visatb_weights {rounded} 1.0000"


def test_hostile_answers_stay_text(index: Path, dump: Dump, tmp_path: Path) -> None:
    dom = dump(index, tmp_path, "#task=3")
    assert "<title>Academic, LLaVA-v1.5-7B – VisATB report</title>" in dom
    assert html.escape(HOSTILE, quote=False) in dom
    assert not re.search(r'<img[^>]*src="x"', dom)
