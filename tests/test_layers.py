"""Imports go one way. The table says what each part may import of ours; entry points join everything."""

import ast
from pathlib import Path

import pytest

import vlapost

PACKAGE = Path(vlapost.__file__).parent

MAY_IMPORT = {
    "contracts": set(),
    "schema": set(),
    "limits": {"schema"},
    "config": {"schema", "limits"},
    "cli": {"config"},
    "drivers": {"config"},
    "disk": {"config"},
    "assets": {"config", "contracts", "drivers", "disk"},
    "envs": {"config", "contracts", "assets", "drivers"},
    "planner": {"config", "contracts", "assets", "envs"},
    "policies": {"config", "contracts", "disk"},
    "algorithms": {"config", "contracts"},
    "experience": {"config", "contracts", "disk"},
    "evaluation": {"config", "contracts", "cli", "disk"},
    "exchange": {"config", "contracts", "disk", "experience"},
    "callbacks": {"config", "contracts", "cli", "evaluation"},
}
JOIN_EVERYTHING = {
    "__init__",
    "attempts",
    "build",
    "train",
    "pretrain",
    "recipe",
    "stages",
    "curve",
    "study",
    "scaling",
    "solved_starts",
    "replay",
    "evaluate",
    "generalization",
    "gallery",
    "collect_demos",
    "doctor",
    "export",
    "against",
    "origin",
    "runs",
    "export_demos",
    "import_demos",
    "memory",
}


def part(path: Path) -> str:
    """The part of the package a file belongs to: its folder, or its own name at the top."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(source: str) -> set[str]:
    """Parts of ours that a source file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names = [f"vlapost.{alias.name}" for alias in node.names] if module == "vlapost" else [module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("vlapost.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_imports_only_what_its_layer_may(path: Path) -> None:
    own = part(path)
    if own in JOIN_EVERYTHING:
        return
    assert own in MAY_IMPORT, f"{path} is a new part: give it a row in the table"
    assert imported_parts(path.read_text()) - {own} <= MAY_IMPORT[own]


def test_imports_inside_functions_and_of_the_package_are_seen() -> None:
    source = "from vlapost import config\ndef f():\n    import vlapost.envs.vector\n    from vlapost.build import g\n"
    assert imported_parts(source) == {"config", "envs", "build"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
