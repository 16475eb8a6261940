"""What the report is made with: templates, styles and scripts, and the one palette of its page and its figures."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str) -> Template:
    """One of the pages' templates; what it is given is text, never markup."""
    loader = PackageLoader("visatb.report", "assets")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True).get_template(name)


def asset(name: str) -> str:
    """One of the page's own files."""
    return resources.files("visatb.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def palette() -> dict[str, tuple[str, str]]:
    """Name of a colour in report.css → its value in the light theme and in the dark one, `#rrggbb` or `#rgb`."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", asset("report.css"))
    return {name: (light, dark) for name, light, dark in found}


def colour(name: str) -> str:
    """A colour of the light theme, which figures on paper have."""
    return palette()[name][0]
