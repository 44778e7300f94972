"""The repository's shape: source roots, packages and test folders keep out of each other's way."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = ("operator", "runtime")


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_source_roots_hold_no_module_of_their_own(root: str) -> None:
    """A module in a source root would be importable by its bare name, in place of others."""
    assert sorted(path.name for path in (ROOT / root).glob("*.py")) == []


def test_the_standard_librarys_operator_wins_from_the_repository_root() -> None:
    """With the repository root first on the path, `import operator` still finds the standard library."""
    code = "import operator; print(operator.__name__, operator.add(2, 3), getattr(operator, '__file__', None))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("operator 5")
    assert str(ROOT) not in shown.stdout


def test_folders_of_tests_hold_no_init_file() -> None:
    """Test folders are named after packages: an __init__.py would make them shadow the packages they test."""
    assert [str(path) for path in (ROOT / "tests").rglob("__init__.py") if path.parent.name.startswith("kvasir")] == []


def test_every_package_ships_and_declares_its_types() -> None:
    """What the wheel is built from are the packages that exist, each marked as typed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    found = [
        str(path.parent.relative_to(ROOT)) for root in SOURCE_ROOTS for path in (ROOT / root).glob("*/__init__.py")
    ]
    assert sorted(packages) == sorted(found)
    assert all((ROOT / package / "py.typed").exists() for package in packages)
