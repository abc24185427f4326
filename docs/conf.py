"""How Sphinx makes a site of these pages: `make docs`. Nothing is fetched, then or by a reader."""

import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from gr_sweep import __version__  # noqa: E402

project = "gr-sweep"
author = "the gr-sweep contributors"
project_copyright = author
release = version = __version__
language = "en"

# `reference` is the file beside this one: what it writes comes from the code.
extensions = [
    "myst_parser",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "reference",
]
exclude_patterns = ["_build", "results/**", "performance/**"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 3

nitpicky = True
# Of other projects, whose indexes would have to be fetched, and names that no page has.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|transformers|numpy|np|nn|pandas|pd|collections|contextlib|pathlib|os)\..*"),
    (r"py:.*", r"(Tensor|PreTrainedModel|Path|DataFrame|Console|RouteWeights|Routing)"),
    (r"py:class", r"gr_sweep\..*"),
]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# A backtick in a docstring is code, as in Markdown.
default_role = "code"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "gr-sweep"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#2f5fd0",
        "color-brand-content": "#2f5fd0",
        "color-brand-visited": "#6b4fb3",
    },
    "dark_css_variables": {
        "color-brand-primary": "#8fb0ff",
        "color-brand-content": "#8fb0ff",
        "color-brand-visited": "#c3a6ff",
    },
}

NAVIGATION = {
    "Concepts": ["routing", "methods", "metrics"],
    "Guides": [
        "configuration",
        "data",
        "training",
        "scale",
        "report",
        "export",
        "extend",
    ],
    "Reference": ["reference"],
    "Results": ["gallery", "results", "performance", "reliability"],
}
"""Groups of the sidebar and their pages. Sphinx warns of a page that is in none."""

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
_CODE = re.compile(r"(^ *(?:```|~~~|:::).*?^ *(?:```|~~~|:::)|`[^`\n]+`(?!\]))", re.M | re.S)

_INTERVAL = re.compile(r"\((-?[\d.,]+) to (-?[\d.,]+)\)")
"""In the tables of results; must not be broken, or columns get too narrow to be read."""


def navigation(found: Collection[str]) -> str:
    """The sidebar as toctrees, in MyST, of the pages that were found."""
    trees = []
    for caption, pages in NAVIGATION.items():
        there = [page for page in pages if page in found]
        head = ["```{toctree}", ":hidden:", f":caption: {caption}", ""]
        trees.append("\n".join([*head, *there, "```"]))
    return "\n\n".join(trees)


def on_the_site(text: str, folder: Path = DOCS) -> str:
    """A page whose links work on the site too.

    The pages are read on a code host as well, where a link can lead to any file of the project.
    Here a config leads to its place in the settings, and what else is no page is named.
    """

    def link(match: re.Match[str]) -> str:
        words, target, _ = match.groups()
        place = (folder / target).resolve()
        if "://" in target or target.startswith("mailto:") or not place.exists():
            return match[0]
        if place.is_file() and place.is_relative_to(DOCS):
            return match[0]  # a page, or a file that goes along
        conf = DOCS.parent / "conf"
        if place.is_relative_to(conf) and place != conf:
            return f"[{words}](reference.md#{place.relative_to(conf).parts[0]})"
        if place == DOCS.parent / "gr_sweep" / "config.py":
            return f"[{words}](reference.md)"
        if place == DOCS.parent / "README.md":
            return f"[{words}](index.md)"
        return words if place.name in words else f"{words} (`{place.relative_to(DOCS.parent)}`)"

    parts = _CODE.split(text)
    prose = (part if at % 2 else _LINK.sub(link, part) for at, part in enumerate(parts))
    return _INTERVAL.sub("(\\1\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}\\2)", "".join(prose))


def read_source(app: Sphinx, name: str, source: list[str]) -> None:
    """What Sphinx reads of a page."""
    source[0] = on_the_site(source[0], (DOCS / name).parent)
    if name == root_doc:
        source[0] += "\n\n" + navigation(app.env.found_docs) + "\n"


_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|object)\b[^>]*\b(?:src|data)=["'](?:https?:)?//"""
    r"""|<link\b(?=[^>]*\brel=["'](?:stylesheet|preload|preconnect))[^>]*\bhref=["'](?:https?:)?//"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//|url\(["']?(?:https?:)?//""",
    re.I,
)


def loaded_from_elsewhere(text: str) -> list[str]:
    """What a page or style sheet would have a browser fetch from the network."""
    return [match[0] for match in _LOADED.finditer(text)]


def check_pages(app: Sphinx, error: Exception | None) -> None:
    """Warns of a built page that needs the network; `make docs` fails on a warning."""
    if error is not None:
        return
    for path in sorted(Path(app.outdir).rglob("*")):
        if path.suffix in (".html", ".css"):
            for found in loaded_from_elsewhere(path.read_text("utf-8")):
                logging.getLogger(__name__).warning("%s fetches: %s", path.name, found)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", read_source)
    app.connect("build-finished", check_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
