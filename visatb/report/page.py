"""The report's files, written whole or not at all, the page last."""

from __future__ import annotations

import base64
import hashlib
import logging
from pathlib import Path

from markupsafe import Markup

from eval.files import write_text
from visatb.report.card import model_card
from visatb.report.figures import write_figures
from visatb.report.load import ReportError, load
from visatb.report.outcome import losses
from visatb.report.predictions import collect
from visatb.report.resources import asset, template
from visatb.report.version import version
from visatb.report.view import script_json, view

logger = logging.getLogger(__name__)


def build_report(workdir: Path, samples_per_task: int, image_bytes: int) -> Path:
    """See visatb.report.build."""
    run = load(workdir)
    folder = workdir / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = write_figures(run, losses(run), folder / "figures")
        predictions, unseen = collect(run, samples_per_task, image_bytes)
        shown = view(run)
        shown["notes"] = [*shown["notes"], *unseen]
        page = _render(
            shown,
            figures=figures,
            has_predictions=bool(predictions["pages"]),
            browser_json=script_json(predictions),
            whatif_json=script_json(shown["whatif"]),
            folder=workdir.resolve().name,
        )
        write_text(folder / "MODEL_CARD.md", model_card(run, shown))
        write_text(folder / "index.html", page)
    except OSError as error:
        raise ReportError(f"{folder}: cannot be written ({error})") from error
    logger.info("report: %s (%.1f MB)", folder / "index.html", len(page.encode()) / 1e6)
    return folder / "index.html"


def _render(shown: dict[str, object], **more: object) -> str:
    script = asset("weights.js") + asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("report.html").render(
        **shown,
        **more,
        css=Markup(asset("report.css")),
        script=Markup(script),
        script_hash=Markup(f"'sha256-{digest}'"),
        version=version(),
    )
