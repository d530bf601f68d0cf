"""The registry: parts by name or import path, their settings checked, facts filled in."""

import sys
from collections.abc import Sequence
from typing import Annotated

import pytest

from polyvec.errors import SettingsError
from polyvec.registry import Fact, Registry, build, check_settings


def scale(
    size: Annotated[int, Fact("hidden_size")],
    factor: float,
    ids: Annotated[Sequence[int], Fact("token_ids", of="tokens")] = (),
    mode: str = "plain",
    layers: Annotated[int | None, Fact("num_layers", when=("mode", "deep"))] = None,
) -> tuple[int, float, tuple[int, ...], int | None]:
    return size, factor, tuple(ids), layers


FACTS = {
    "hidden_size": 8,
    "num_layers": 3,
    "token_ids": lambda tokens: tuple(len(token) for token in tokens),
}


@pytest.fixture
def table():
    return Registry("scaler", {"scale": scale})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a user's, on the path."""
    name = "users_scalers"
    (tmp_path / f"{name}.py").write_text(
        "class Outer:\n"
        "    def inner(factor: int) -> int:\n"
        "        return factor + 1\n"
        "def outer(): return lambda: 0\n"
        "local = outer()\n"
        "VALUE = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_facts_fill_what_settings_leave_open(table):
    assert table.build("scale", {"factor": 2.0}, FACTS, where="[x]") == (8, 2.0, (), None)
    given = {"factor": 2, "size": 5, "tokens": ["a", "bc"], "mode": "deep"}
    assert table.build("scale", given, FACTS, where="[x]") == (5, 2.0, (1, 2), 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"\[x\] scaler 'scale': setting 'factor' is missing"),
        ({"factor": "2"}, "setting 'factor' is '2', not float"),
        ({"factor": True}, "setting 'factor' is True, not float"),
        ({"facter": 2.0, "factor": 2.0}, "'facter' is not known. Did you mean 'factor'"),
        ({"factor": 2.0, "tokens": [1]}, r"setting 'tokens'\[0\] is 1, not str"),
        ({"factor": 2.0, "tokens": ["a"], "ids": [1]}, "'tokens' and 'ids' are exclusive"),
        ({"factor": 2.0, "layers": "3"}, "'layers' is '3', not int"),
    ],
)
def test_wrong_settings_are_one_line(table, settings, message):
    with pytest.raises(SettingsError, match=message) as caught:
        table.check("scale", settings, where="[x]")
    assert "\n" not in str(caught.value)


def test_a_fact_that_the_model_lacks_is_an_error(table):
    with pytest.raises(SettingsError, match="needs hidden_size, which the model does not have"):
        table.build("scale", {"factor": 2.0}, {"hidden_size": None}, where="[x]")


def test_a_list_of_facts_without_a_default_must_be_set():
    def slots(ids: Annotated[Sequence[int], Fact("token_ids", of="tokens")]) -> tuple[int, ...]:
        return tuple(ids)

    with pytest.raises(SettingsError, match="setting 'tokens' is missing"):
        check_settings(slots, {}, where="[x]")
    assert build(slots, {"tokens": ["abc"]}, FACTS, where="[x]") == (3,)
    assert build(slots, {"ids": [7]}, FACTS, where="[x]") == (7,)


def test_a_part_of_a_users_package_is_found_by_its_path(table, package):
    assert table.build(f"{package}:Outer.inner", {"factor": 2}, where="[x]") == 3
    part = table.find(f"{package}:Outer.inner")
    assert table.name_of(part) == f"{package}:Outer.inner"
    assert table.name_of(scale) == "scale"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scal", r"\[x\]: scaler 'scal' is not known. Did you mean 'scale'"),
        ("no_such_package:part", "cannot be imported: No module named 'no_such_package'.*PYTHONP"),
        ("users_scalers:Othr", "cannot be imported: .*'Othr'"),
        ("users_scalers:VALUE", "is int, expected a function or a class"),
        (":part", "cannot be imported"),
    ],
)
def test_what_cannot_be_found_is_one_line(table, package, name, message):
    with pytest.raises(SettingsError, match=message) as caught:
        table.find(name, where="[x]")
    assert "\n" not in str(caught.value)


def test_a_part_that_no_other_program_can_import_has_no_name(table, package):
    local = table.find(f"{package}:local")
    with pytest.raises(SettingsError, match="register it under a name"):
        table.name_of(local)
    table.register("local")(local)
    assert table.name_of(local) == "local"


def test_a_name_is_registered_once(table):
    table.register("scale")(scale)
    with pytest.raises(SettingsError, match="scaler 'scale' is already registered"):
        table.register("scale")(lambda: 0)
    with pytest.raises(SettingsError, match="is int, expected"):
        table.register("three")(3)


def test_extra_arguments_are_no_settings():
    def loose(*args: int, **kwargs: int) -> None:
        pass

    with pytest.raises(SettingsError, match="'kwargs' is not known"):
        check_settings(loose, {"kwargs": 1}, where="[x]")


@pytest.mark.parametrize("body", ["raise RuntimeError('no')", "def (", "raise SystemExit(3)"])
def test_a_module_that_fails_at_import_is_one_line(tmp_path, monkeypatch, body):
    (tmp_path / "users_failing_module.py").write_text(body + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="users_failing_module:x' cannot be imported"):
        Registry("part").find("users_failing_module:x")


def test_a_name_that_is_not_a_string_is_refused():
    with pytest.raises(SettingsError, match="is int, expected a name"):
        Registry("part").find(3)
