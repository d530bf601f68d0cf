"""Tables of settings files become dataclasses, strictly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from polyvec.errors import SettingsError
from polyvec.settings import checked, fill, typed


@dataclass(frozen=True)
class Step:
    name: str
    rate: float = 0.1


def test_a_table_becomes_a_dataclass():
    assert fill(Step, {"name": "a", "rate": 1}, "[step]") == Step("a", 1.0)
    assert typed(Step, {"rate": 2}, "[step.nano]", partial=True) == {"rate": 2.0}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, r"\[step\] key 'name' is missing"),
        ({"name": "a", "rat": 1}, r"\[step\] key 'rat' is not known. Did you mean 'rate'"),
        ({"name": 1}, r"\[step\] key 'name' is 1, not str"),
        ([], r"\[step\] is \[\], not a table"),
    ],
)
def test_a_wrong_table_is_refused(raw, message):
    with pytest.raises(SettingsError, match=message):
        fill(Step, raw, "[step]")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, 1.0),
        ([1, 2], Sequence[int], (1, 2)),
        (["a"], tuple[str, ...], ("a",)),
        ([1, "a"], tuple[int, str], (1, "a")),
        ("a", str | Sequence[str], "a"),
        (["a"], str | Sequence[str], ("a",)),
        (None, int | None, None),
        ("mean", Literal["mean", "last"], "mean"),
        ({"a": [1]}, Mapping[str, Sequence[int]], {"a": (1,)}),
        ([1], Any, [1]),
    ],
)
def test_a_value_of_the_hinted_type_is_taken(value, hint, expected):
    found = checked(value, hint, "x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (True, int, "x is True, not int"),
        (1, bool, "x is 1, not bool"),
        ("1", int | None, "x is '1', not int"),
        (1.5, int, "x is 1.5, not int"),
        ("a", Sequence[str], "x is 'a', not Sequence"),
        ([1, "a"], Sequence[int], r"x\[1\] is 'a', not int"),
        ([1, 2, 3], tuple[int, int], r"x is \[1, 2, 3\], not tuple"),
        ({"a": "b"}, Mapping[str, int], "x.a is 'b', not int"),
        ("max", Literal["mean", "last"], "x is 'max', not 'mean' or 'last'"),
        (1, Literal[True], "x is 1, not True"),
    ],
)
def test_a_value_of_another_type_is_refused(value, hint, message):
    with pytest.raises(SettingsError, match=message):
        checked(value, hint, "x")
