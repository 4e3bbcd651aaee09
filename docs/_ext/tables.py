"""Tables that are made of the code, so that they say what it does: `{slots}`, `{checks}`, `{presets}`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from hggep_sc import _keys
from hggep_sc._settings import CHECKS
from hggep_sc.config import PRESETS, Config

WRITTEN = re.compile(r'^([A-Z]+) = "(hggep\w*)"  # (.+?): (.+)$', re.MULTILINE)  # a name that no key changes
DERIVED = re.compile(r"`(\w+)`: (.+)")


def slots() -> Iterator[tuple[str, str]]:
    """Each slot that is written, under the default key, and what it holds: what `_keys.py` says."""
    yield f'`layers["{_keys.KEY}"]`', "the predicted log expression"
    yield f'`uns["{_keys.KEY}"]`', "the record of the prediction"
    for name, derive in vars(_keys).items():
        if not callable(derive) or name == "metric":
            continue
        slot, what = DERIVED.match(derive.__doc__).groups()
        yield f'`{slot}["{derive(_keys.KEY)}"]`', what.rstrip(".")
    for figure in _keys.METRICS:
        yield f'`var["{_keys.metric(_keys.KEY, figure)}"]`', "a figure of `tl.evaluate` (see its table of figures)"
    for _, name, slot, what in WRITTEN.findall(Path(_keys.__file__).read_text()):
        yield f'`{slot}["{name}"]`', what


def presets() -> Iterator[tuple[str, ...]]:
    """Each setting of a network by preset."""
    all_settings = {name: Config(**{"preset": name, **changed}).to_dict() for name, changed in PRESETS.items()}
    for setting in Config().to_dict():
        if setting != "preset":
            yield f"`{setting}`", *(f"`{settings[setting]}`" for settings in all_settings.values())


TABLES = {
    "slots": lambda: (("slot", "what it holds"), slots()),
    "checks": lambda: (("check", "what holds where it is not warned of or refused"), CHECKS.items()),
    "presets": lambda: (("setting", *(f"`{name}`" for name in PRESETS)), presets()),
}


class Table(SphinxDirective):
    """A table of `TABLES`, by the directive's name."""

    def run(self) -> list[nodes.Node]:
        """Write it as Markdown, and have it read."""
        head, rows = TABLES[self.name]()
        lines = [head, ["---"] * len(head), *rows]
        text = StringList([f"| {' | '.join(cells)} |" for cells in lines], source=self.name)
        holder = nodes.container()
        self.state.nested_parse(text, self.content_offset, holder)
        return holder.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx."""
    for name in TABLES:
        app.add_directive(name, Table)
    return {"parallel_read_safe": True}
