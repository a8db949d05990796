import ast
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

import common_core

MODULES = [
    module.name
    for module in pkgutil.walk_packages(common_core.__path__, "common_core.")
    if not module.ispkg
]


def defined_names(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", MODULES)
def test_all_lists_what_a_module_defines(name: str) -> None:
    """What a contract module exports is what it defines, no more and no less."""
    module = import_module(name)
    assert module.__file__ is not None
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert set(module.__all__) == defined_names(source)
