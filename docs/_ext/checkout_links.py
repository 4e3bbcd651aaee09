"""Links of the pages as they are right in the checkout, made right on the site.

`benchmarks/` and `notebooks/` lie beside `docs/` in the checkout, and below it on the site.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
from sphinx.application import Sphinx

DOCS = Path(__file__).parent.parent
LINK = re.compile(r"(?P<text>!?\[[^]]*\])\((?P<path>(?![a-z]+:|/)[^)#\s]+)(?P<anchor>#[^)]*)?\)")


def on_the_site(app: Sphinx, docname: str, source: list[str]) -> None:
    """Rewrite the relative links of a page, or of a notebook's text."""
    page = Path(app.env.doc2path(docname)).resolve()

    def moved(link: re.Match[str]) -> str:
        target = (page.parent / link["path"]).resolve()
        if target.is_relative_to(DOCS):
            return f"{link['text']}(/{target.relative_to(DOCS)}{link['anchor'] or ''})"
        beside = target.relative_to(DOCS.parent)
        if target.suffix in {".md", ".ipynb"}:
            return f"{{doc}}`{link['text'][1:-1]} </{beside.with_suffix('')}>`"
        return f"{link['text']}(/{beside})"

    if page.suffix == ".md":
        source[0] = LINK.sub(moved, source[0])
    elif page.suffix == ".ipynb":
        notebook = nbformat.reads(source[0], as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = LINK.sub(moved, cell.source)
        source[0] = nbformat.writes(notebook)


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx."""
    app.connect("source-read", on_the_site)
    return {"parallel_read_safe": True}
