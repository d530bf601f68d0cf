"""The package as a whole: what it exports, what it imports, and which way."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import polyvec

SOURCE = Path(polyvec.__file__).parent
# Arrows go down this list, never up: a room or top-level file imports those before it.
ORDER = [
    *("errors", "settings", "registry", "interfaces", "recipe"),
    *(
        "storage",
        "data",
        "nano",
        "embed",
        "index",
        "rerank",
        "train",
        "evaluate",
        "llm",
        "services",
        "synthesize",
        "cluster",
        "compress",
        "invert",
        "serve",
        "bulk",
    ),
    *("sentence_transformers", "integrations", "cli"),
    *("__init__", "__main__"),
]


def test_public_names():
    assert polyvec.__all__ == [
        "Calibration",
        "Embedder",
        "EncodeReport",
        "Index",
        "MultiVectorEmbedder",
        "PolyvecError",
        "Recipe",
        "TextCompressor",
        "Trainer",
        "TrainingArguments",
        "__version__",
        "load_language_model",
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
    """Over every file, imports for types alone included."""
    for path, names in imports().items():
        place = room(path)
        assert place in ORDER, f"{path}: its room has no place among {ORDER}"
        for name in names:
            target = name.split(".")[1] if "." in name else "__init__"
            if target == "__init__":
                continue  # the version, and public names, are loaded on first use
            assert ORDER.index(target) <= ORDER.index(place), f"{path} imports {name}"


def test_no_file_imports_itself_through_others():
    """Imports for types alone included; the root is left out, it loads its names on first use."""
    names = {module(path): path for path in imports()}
    graph = {module(path): set(targets(path, set(names))) - {"polyvec"} for path in names.values()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which shows the cycle


def module(path: Path) -> str:
    parts = ("polyvec", *path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def targets(path: Path, names: set[str]) -> Iterator[str]:
    """The files that a file imports; of `from a import b` that is a/b.py if there is one."""
    for node in ast.walk(ast.parse((SOURCE / path).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in names else str(node.module) for name in whole} & names
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & names


def imports() -> dict[Path, list[str]]:
    """The polyvec modules that each file names in an import, anywhere in it."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        names: list[str] = []
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            elif isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
        inside = [name for name in names if name.split(".")[0] == "polyvec"]
        found[path.relative_to(SOURCE)] = inside
    return found


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def test_the_version_is_written_once():
    assert version("polyvec") == polyvec.__version__
    pyproject = SOURCE.parents[1] / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("not a checkout")
    assert "version" in tomllib.loads(pyproject.read_text())["project"]["dynamic"]


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
