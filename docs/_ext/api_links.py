"""What is written as code and names something of the package leads to its page of the reference.

Also read here are "Returns" of docstrings that are plain text, as scverse writes them, and names in signatures.
"""

import re
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.transforms import SphinxTransform

import hggep_sc


def public(room: str) -> list[str]:
    """Return the public names of a room, or those that a module defines."""
    module = getattr(hggep_sc, room)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]


ROOMS = {name: public(name) for name in hggep_sc.__all__ if isinstance(getattr(hggep_sc, name), ModuleType)}
CLASSES = {name: f"hggep_sc.{room}.{name}" for room, names in ROOMS.items() for name in names if name[0].isupper()}
CLASSES |= {name: f"hggep_sc.{name}" for name in ("HGGEP", "Config", "CrossValidation")}
# as signatures name what other packages hold
ELSEWHERE = {"AnnData": "anndata.AnnData", "SpatialData": "spatialdata.SpatialData", "Path": "pathlib.Path"}
CALLED = re.compile(r"(?:hggep_sc\.|hggep\.)?([A-Za-z]\w*(?:\.\w+)*)(?:\(.*\))?", re.DOTALL)


def full_name(code: str) -> str | None:
    """Return the full name of `tl.fit(...)`, `HGGEP.load` or `InputError`; None of what is not of the package."""
    if not (called := CALLED.fullmatch(code)):
        return None
    first, *rest = called[1].split(".")
    if first in ROOMS and rest and rest[0] in ROOMS[first]:
        return f"hggep_sc.{called[1]}"
    return ".".join([CLASSES[first], *rest]) if first in CLASSES else None


class ApiLinks(SphinxTransform):
    """Make references of code that names something of the package."""

    default_priority = 9  # before references are resolved

    def apply(self, **_: Any) -> None:
        """Go through the page."""
        for code in list(self.document.findall(nodes.literal)):
            if isinstance(code.parent, nodes.reference | pending_xref) or code.get("language"):
                continue
            if target := full_name(code.astext()):
                link = pending_xref(
                    "", refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=False
                )
                link["refdoc"] = self.env.current_document.docname
                code.replace_self(link)
                link += code


def resolve(app: Sphinx, env: Any, node: pending_xref, content: nodes.TextElement) -> nodes.reference | None:
    """Find a name that stands without its module, or with the module that defines it, in the reference."""
    if node.get("refdomain") != "py" or node.get("refwarn") is False:
        return None
    node["reftarget"] = ELSEWHERE.get(node["reftarget"], node["reftarget"])  # for intersphinx, which comes next
    known = CLASSES.get(node["reftarget"].rsplit(".", 1)[-1])
    python = env.get_domain("py")
    return known and python.resolve_xref(
        env, node["refdoc"], app.builder, "obj", known, pending_xref("", refdoc=node["refdoc"]), content
    )


def returns(self: NumpyDocstring, section: str) -> list[str]:
    """Take "Returns" as text, whose first line is no type."""
    lines = self._format_block(":returns: ", self._dedent(self._consume_to_next_section()))
    return [*lines, ""] if lines and lines[-1] else lines


def attribute(self: NumpyDocstring) -> list[str]:
    """Take a property's docstring as text, whose first words are no type."""
    return self._consume_to_end()


def attributes(self: NumpyDocstring, section: str) -> list[str]:
    """List attributes under that name, those that share a description together."""
    return self._format_fields(section, self._consume_fields())


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx."""
    NumpyDocstring._parse_returns_section = returns
    NumpyDocstring._parse_attribute_docstring = attribute
    NumpyDocstring._parse_attributes_section = attributes
    app.add_transform(ApiLinks)
    app.connect("missing-reference", resolve, priority=400)
    return {"parallel_read_safe": True}
