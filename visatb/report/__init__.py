"""The report of an experiment: one self-contained page, its figures as files, and the final checkpoint's model card."""

from __future__ import annotations

from pathlib import Path

SAMPLES_PER_TASK = 24
IMAGE_BYTES = 4_000_000


def build(workdir: Path, samples_per_task: int = SAMPLES_PER_TASK, image_bytes: int = IMAGE_BYTES) -> Path:
    """Make `workdir`/report from whatever the work folder holds by now; the path of its index.html.

    `samples_per_task` questions of each task and split are shown with their predictions, with thumbnails of at most
    `image_bytes` together. ReportError where the folder is no work folder or a file in it is broken.
    """
    from visatb.report.page import build_report  # matplotlib and Jinja only when a report is made

    return build_report(Path(workdir), samples_per_task, image_bytes)


def compare(workdir: Path, other: Path) -> Path:
    """Make a page that compares two work folders, in the first one's report folder; its path. Raises as `build`."""
    from visatb.report.compare import build_comparison

    return build_comparison(Path(workdir), Path(other))
