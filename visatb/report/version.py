"""The version of VisATB that made a report."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The installed version, or a word where the checkout is used without installing it."""
    try:
        return metadata.version("visatb")
    except metadata.PackageNotFoundError:
        return "(not installed)"
