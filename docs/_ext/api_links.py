"""What is written as code and names something of the package leads to its page of the reference.

Also read here are "Returns" of docstrings that are plain text, as scverse writes them, and names in signatures.
"""

import re
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.transforms import SphinxTransform

import hggep_sc

ROOMS = [name for name in hggep_sc.__all__ if hasattr(getattr(hggep_sc, name), "__path__")]
ROOMS += ["errors", "get", "metrics"]  # modules
CALLED = re.compile(r"(?:hggep_sc\.|hggep\.)?((?:%s)\.\w+|HGGEP(?:\.\w+)?|Config|CrossValidation(?:\.\w+)?)(?:\(.*\))?"
                    % "|".join(ROOMS), re.DOTALL)  # fmt: skip


def public(room: str) -> list[str]:
    """Return the public names of a room, or those that a module defines."""
    module = import_module(f"hggep_sc.{room}") if room != "baselines" else hggep_sc.baselines
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]


# as signatures name what other packages hold
ELSEWHERE = {"AnnData": "anndata.AnnData", "SpatialData": "spatialdata.SpatialData", "Path": "pathlib.Path"}
HOMES = {name: f"hggep_sc.{room}.{name}" for room in ROOMS for name in public(room)}
HOMES |= {name: f"hggep_sc.{name}" for name in ("HGGEP", "Config", "CrossValidation")}


class ApiLinks(SphinxTransform):
    """Make references of code that names something of the package."""

    default_priority = 9  # before references are resolved

    def apply(self, **_: Any) -> None:
        """Go through the page."""
        for code in list(self.document.findall(nodes.literal)):
            if isinstance(code.parent, nodes.reference | pending_xref) or code.get("language"):
                continue
            called = CALLED.fullmatch(code.astext())
            if called and {*called[1].split(".")[:2]} & HOMES.keys():
                link = pending_xref(
                    "", refdomain="py", reftype="obj", reftarget=f"hggep_sc.{called[1]}", refexplicit=True, refwarn=False
                )
                link["refdoc"] = self.env.current_document.docname
                code.replace_self(link)
                link += code


def resolve(app: Sphinx, env: Any, node: pending_xref, content: nodes.TextElement) -> nodes.reference | None:
    """Find a name that stands without its module, or with the module that defines it, in the reference."""
    if node.get("refdomain") != "py" or node.get("refwarn") is False:
        return None
    node["reftarget"] = ELSEWHERE.get(node["reftarget"], node["reftarget"])  # for intersphinx, which comes next
    home = HOMES.get(node["reftarget"].rsplit(".", 1)[-1])
    python = env.get_domain("py")
    return home and python.resolve_xref(
        env, node["refdoc"], app.builder, "obj", home, pending_xref("", refdoc=node["refdoc"]), content
    )


def returns(self: NumpyDocstring, section: str) -> list[str]:
    """Take "Returns" as text, whose first line is no type."""
    lines = self._format_block(":returns: ", self._dedent(self._consume_to_next_section()))
    return [*lines, ""] if lines and lines[-1] else lines


def attribute(self: NumpyDocstring) -> list[str]:
    """Take a property's docstring as text, whose first words are no type."""
    return self._consume_to_end()


def attributes(self: NumpyDocstring, section: str) -> list[str]:
    """Take names that share a description apart, as in "Parameters"."""
    return self._format_docutils_params(self._consume_fields(multiple=True), field_role="ivar", type_role="vartype")


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx."""
    NumpyDocstring._parse_returns_section = returns
    NumpyDocstring._parse_attribute_docstring = attribute
    NumpyDocstring._parse_attributes_section = attributes
    app.add_transform(ApiLinks)
    app.connect("missing-reference", resolve, priority=400)
    return {"parallel_read_safe": True}
