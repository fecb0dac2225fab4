"""Imports point one way, and the pure rooms stay pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "penjing"
EFFECTS = {
    "os",
    "sys",
    "subprocess",
    "socket",
    "time",
    "threading",
    "multiprocessing",
    "random",
    "ctypes",
    "http",
}

# Lower rooms never import higher ones; modules of one room may import each other.
ROOMS = (
    {
        "units",
        "errors",
        "figures",
        "formats",
        "model",
        "machine",
        "workload",
        "plan",
        "deployment",
        "artifact",
        "rates",
    },
    {"cost", "quality", "drafting"},
    {"search"},
    {"store", "progress", "fingerprint", "gguf", "hf", "probe", "engines", "catalogue", "fetch", "launch"},
    {"quantize", "sensitivities", "texts", "drafts", "table", "elsewhere"},
    {"calibrate", "evaluate", "build", "costs", "prior", "kernel_rates", "pass_rates", "reference", "slices"},
    {"tune", "planner", "bench", "shrink", "finalists", "codesign", "ablation", "guessing", "guessing_heads"},
    {"serve"},
    {"cli"},
)
PURE = sorted(
    str(path.relative_to(PACKAGE))
    for name in set().union(*ROOMS[:3])
    for path in (PACKAGE.glob(f"{name}.py"), (PACKAGE / name).rglob("*.py"))
    for path in path
)


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_stay_pure(name):
    """Nouns, cost and search start no process, open no socket, read no clock and no file."""
    assert set() == EFFECTS.intersection(imports(PACKAGE / name))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    """No module imports from a room above its own."""
    if path.parent == PACKAGE and path.stem in ("__init__", "__main__"):
        return
    own = room(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    above = {name for name in imports(path) if name.startswith("penjing.") and room(name.split(".")[1]) > own}

    assert set() == above


def test_every_module_has_a_room():
    """A new module is placed in the order of imports on purpose."""
    tops = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}

    assert tops - {"__init__", "__main__"} <= set().union(*ROOMS)


def room(name: str) -> int:
    return next(number for number, names in enumerate(ROOMS) if name in names)


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, however spelled, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "penjing":
                yield from (f"penjing.{alias.name}" for alias in node.names if not alias.name.startswith("_"))
