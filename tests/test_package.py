"""The package as a whole: what it exports, what it imports, and which way."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import polyvec

SOURCE = Path(polyvec.__file__).parent
# Arrows go down this list, never up; top-level modules are the base of all.
ORDER = ["data", "embed", "index", "evaluate", "cli"]


def test_public_names():
    assert polyvec.__all__ == [
        "Calibration",
        "Embedder",
        "EncodeReport",
        "Index",
        "PolyvecError",
        "Recipe",
        "__version__",
        "load_recipe",
        "nano_lm",
        "nano_t5",
        "quantize",
    ]
    for name in polyvec.__all__:
        assert getattr(polyvec, name) is not None
    with pytest.raises(AttributeError, match="Embeder"):
        _ = polyvec.Embeder


def test_import_needs_no_torch():
    """Nor the command line's help, nor the list of recipes."""
    code = (
        "import sys, polyvec, polyvec.recipe, polyvec.cli\n"
        "polyvec.cli.parser(); list(polyvec.recipe.all_recipes())\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_imports_go_one_way():
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).parts[0]
        if place not in ORDER:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                part = (name or "").removeprefix("polyvec.").split(".")[0]
                if (name or "").startswith("polyvec.") and part in ORDER:
                    assert ORDER.index(part) <= ORDER.index(place), f"{path} imports {name}"


def test_the_package_is_typed():
    assert (SOURCE / "py.typed").is_file()


def test_every_dependency_is_pinned():
    root = SOURCE.parents[1]
    if not (root / "constraints.txt").is_file():
        pytest.skip("not a checkout")
    pins = dict(
        line.split("==")
        for line in (root / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    from importlib.metadata import requires

    canonical = {name.lower().replace("_", "-") for name in pins}
    for requirement in requires("polyvec") or []:
        name = re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")
        assert name == "polyvec" or name in canonical, requirement
