"""Every public name is documented: parameters as the signature has them, what comes back, what is raised."""

import ast
import builtins
import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType

import pytest
from numpydoc.docscrape import ClassDoc, FunctionDoc

import hggep_sc as hggep

API = Path(__file__).parent.parent / "docs" / "api"
ROOMS = [name for name in hggep.__all__ if isinstance(getattr(hggep, name), ModuleType)]


def names_of(room):
    module = getattr(hggep, room)
    if hasattr(module, "__all__"):
        return module.__all__
    return [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]


NAMES = [f"{room}.{name}" for room in ROOMS for name in names_of(room) if not name.startswith("_")]
NAMES += [name for name in hggep.__all__ if name not in ROOMS and not name.startswith("__")]
NAMES = [name for name in NAMES if not name.split(".")[-1].isupper()]  # constants


def thing(name):
    found = hggep
    for part in name.split("."):
        found = getattr(found, part)
    return found


def functions():
    """Public functions, and methods of public classes, each once: what is inherited goes by the first class."""
    seen = set()
    for name in NAMES:
        found = thing(name)
        members = dir(found) if inspect.isclass(found) else []
        for member in (member for member in members if not member.startswith("_")):
            method = getattr(found, member)  # of its class, so that it has the docstring of what it overrides
            defined = getattr(method, "__func__", method)
            if inspect.isfunction(defined) and defined.__module__.startswith("hggep_sc") and defined not in seen:
                seen.add(defined)
                yield f"{name}.{member}", method
        if inspect.isfunction(found):
            yield name, found


# `forward` and `maps` of networks are called by torch and the house, and are documented on their class
FUNCTIONS = {name: call for name, call in functions() if name.split(".")[-1] not in ("forward", "maps")}


def described(entries):
    return [name.strip(" *") for entry in entries for name in entry.name.split(",")]


def raised(call):
    """Classes that the body of a function raises itself."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(call)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).split(".")[-1]
            if name[0].isupper():
                yield name


def family(name):
    """An error's class and those that it is a kind of."""
    found = getattr(hggep.errors, name, None) or getattr(builtins, name)
    return {kind.__name__ for kind in found.__mro__}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    call, doc = FUNCTIONS[name], FunctionDoc(FUNCTIONS[name])
    signature = inspect.signature(call)
    given = [parameter for parameter in signature.parameters if parameter not in ("self", "cls")]
    assert doc["Summary"]
    if "see `hggep_sc.tl.fit`" in inspect.getdoc(call):
        assert set(given) <= {"sections", *inspect.signature(hggep.tl.fit).parameters}
    elif len(given) > 2 or doc["Parameters"]:  # of less, a sentence or two say it all
        assert sorted(described(doc["Parameters"])) == sorted(given)
        assert doc["Returns"] or doc["Yields"] or signature.return_annotation in (None, "None")
    listed = {one.strip() for entry in doc["Raises"] for one in entry.type.split(",")}
    assert [error for error in raised(call) if not family(error) & listed] == []


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isclass(thing(name))])
def test_class(name):
    kind = thing(name)
    assert kind.__doc__
    doc = ClassDoc(kind)
    if is_dataclass(kind):
        assert {field.name for field in fields(kind)} <= {*described(doc["Parameters"]), *described(doc["Attributes"])}


def test_settings():
    doc = ClassDoc(type(hggep.settings))
    assert {entry.name for entry in doc["Attributes"]} == set(type(hggep.settings).__dataclass_fields__)


def test_every_name_has_its_place_in_the_reference():
    listed = set()
    for page in API.glob("*.md"):
        listed |= set(re.findall(r"^ {3}([\w.]+)$", page.read_text(), re.MULTILINE))
    assert set(NAMES) - listed == {"settings"}  # an object, in api/core.md
    assert "data:: hggep_sc.settings" in (API / "core.md").read_text()
