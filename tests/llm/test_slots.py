"""Templates over rows: values are data, slots are fields."""

import pytest

from polyvec.errors import InputError, SettingsError
from polyvec.llm.slots import SlotTemplate


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{a}", "{b} }} {"),
        ("{a}{a}", "{b} }} {{b} }} {"),
        ("{{{a}}}", "{{b} }} {}"),
        ("{{a}} {n}", "{a} 3"),
        ("{list} {flag}", '["x", {"y": null}] true'),
        ("{with space}|{}", "s|nameless"),
        ("no slot", "no slot"),
        ("", ""),
    ],
)
def test_values_are_data(template, rendered):
    row = {"a": "{b} }} {", "b": "no", "n": 3, "list": ["x", {"y": None}], "flag": True}
    row |= {"with space": "s", "": "nameless"}
    assert SlotTemplate.parse(template).render(row) == rendered


def test_slots_are_fields():
    template = SlotTemplate.parse("{a} {b} {{c}} {a}", "t")
    assert template.slots == ["a", "b", "a"]
    template.check(["a", "b", "c"])
    with pytest.raises(SettingsError, match=r"t: slot 'b' is not a field .* Known: a, c"):
        template.check({"a": 1, "c": 2}, "t")


@pytest.mark.parametrize("template", ["{", "}", "a {b", "b} c", "{a{b}}", '{"q": {a}}'])
def test_a_single_brace_is_refused_with_its_place(template):
    with pytest.raises(SettingsError, match=r"t: '[{}]' at character \d+ is unmatched"):
        SlotTemplate.parse(template, "t")


@pytest.mark.parametrize(
    ("row", "message"),
    [({}, "'a' is missing"), ({"a": None}, "'a' is null"), ({"a": "\ud800"}, "lone surrogate")],
)
def test_a_value_that_is_no_text_is_named(row, message):
    with pytest.raises(InputError, match=message):
        SlotTemplate.parse("{a}").render(row)
