import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from huleedu_service_libs import error_handling

MODULES = [
    module.name
    for module in pkgutil.iter_modules(
        error_handling.__path__, "huleedu_service_libs.error_handling."
    )
]
FRAMEWORKS = ("quart", "werkzeug", "hypercorn", "fastapi", "starlette")


def public_names(path: str | None) -> set[str]:
    """Names a module defines; for one that only passes names on, those."""
    assert path is not None
    defined: set[str] = set()
    imported: set[str] = set()
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                defined.add(name)
            case ast.AsyncFunctionDef(name=name):
                defined.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                defined.add(name)
            case ast.ImportFrom(names=names):
                imported.update(alias.name for alias in names)
    return {name for name in defined if not name.startswith("_")} or imported


@pytest.mark.parametrize("name", MODULES)
def test_all_lists_what_a_module_offers(name: str) -> None:
    """What an error handling module exports is what it offers, no more and no less."""
    module = import_module(name)
    # The contract names the status map as the handlers' own.
    passed_on = {"ERROR_CODE_TO_HTTP_STATUS"} if name.endswith("_handlers") else set()
    assert set(module.__all__) == public_names(module.__file__) | passed_on


def test_the_package_offers_all_that_needs_no_framework() -> None:
    """Everything but the handlers can be imported from the package itself."""
    neutral = [name for name in MODULES if not name.endswith(("_handlers", ".quart", ".fastapi"))]
    offered = {public for name in neutral for public in import_module(name).__all__}
    assert set(error_handling.__all__) == public_names(error_handling.__file__) == offered


def test_errors_need_no_web_framework() -> None:
    """A worker without Quart and FastAPI can raise and describe errors."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys({FRAMEWORKS!r}))  # None makes an import fail
from huleedu_service_libs.error_handling import *
try:
    raise_timeout_error("worker", "run", 5, "too slow", None)
except HuleEduError as error:
    print(public_error_body(error.error_detail)["error"]["code"])
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (finished.stdout.strip(), finished.stderr) == ("TIMEOUT", "")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("error_handling.quart", ("fastapi", "starlette", "prometheus_client")),
        ("error_handling.fastapi", ("quart", "werkzeug", "hypercorn", "prometheus_client")),
        ("middleware.correlation", ("quart", "werkzeug", "hypercorn", "prometheus_client")),
        ("middleware.http_metrics", ("quart", "werkzeug", "hypercorn")),
        ("middleware.request_spans", (*FRAMEWORKS, "prometheus_client")),
    ],
)
def test_a_service_needs_one_web_framework(module: str, absent: tuple[str, ...]) -> None:
    """A service installs its own framework and not that of its neighbours."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))
import huleedu_service_libs.{module}
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")
