"""Filters of metadata: what is read, and what is refused."""

import pytest

from polyvec.errors import InputError
from polyvec.index.filters import And, Compare, check_fields, matches, read_filter

ROW = {"lang": "en", "year": 2021, "weight": 0.5, "draft": False}


@pytest.mark.parametrize(
    ("text", "lets_through"),
    [
        ('lang = "en"', True),
        ("lang == 'de'", False),
        ('lang != "de" and year >= 2021', True),
        ('lang = "de" or year < 2022', True),
        ('not lang = "en"', False),
        ("absent = 1", False),
        ("absent != 1", False),
        ("not absent = 1", True),
        ("absent not in (1)", False),
        ("year in (2020, 2021)", True),
        ("year NOT IN (2020)", True),
        ("draft = false AND draft exists", True),
        ("not (weight > .25 and weight < 1e0)", False),
        ('lang = "de" and year = 2021 or draft = false', True),
        ('lang = "de" and (year = 2021 or draft = false)', False),
        ({"lang": "en", "year": {"$gte": 2020, "$lt": 2022}}, True),
        ({"$or": [{"lang": "de"}, {"year": {"$in": [2021]}}]}, True),
        ({"year": {"$nin": [2021]}}, False),
        ({"$not": {"absent": {"$exists": True}}}, True),
    ],
)
def test_a_filter_lets_through_what_it_says(text, lets_through):
    assert matches(read_filter(text), ROW) is lets_through


def test_and_binds_before_or_and_quotes_are_escaped():
    assert read_filter(r'a = "say \"hi\" \\"') == Compare("a", "=", 'say "hi" \\')
    assert read_filter("a = 1 and b = 2") == And((Compare("a", "=", 1), Compare("b", "=", 2)))
    assert read_filter("  ") is None
    assert read_filter(None) is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("a ==", "got the end"),
        ("a = = 1", "'=' at character 4"),
        ("(a = 1", "expected '\\)'"),
        ("a = 1 b = 2", "'b' at character 6"),
        ("a < true", "no order"),
        ("a ~ 1", "cannot read"),
        ("a in ()", "expected a value"),
        ('"a" = 1', "a field's name"),
        ("(" * 200 + "a = 1" + ")" * 200, "within one another"),
        ("not " * 200 + "a = 1", "within one another"),
        ({}, "empty dict"),
        ({"a": None}, "NoneType"),
        ({"a": float("nan")}, "finite"),
        ({"a": {"$gt3": 1}}, r"\$gt3"),
        ({"$nor": [{"a": 1}]}, r"\$nor"),
        ({"a b": 1}, "field's name"),
        ({"a": {"$in": "text"}}, "list"),
        (7, "expected a string or a dict"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(given, says):
    with pytest.raises(InputError, match=says) as error:
        read_filter(given)
    assert "\n" not in str(error.value)


def test_fields_are_checked_against_the_index():
    fields = {"lang": "text", "year": "int"}
    check_fields(read_filter('lang = "en" and not year > 2.5'), fields)
    with pytest.raises(InputError, match=r"no field 'yaer'.*year"):
        check_fields(read_filter("yaer = 3"), fields)
    with pytest.raises(InputError, match="lang is text, compared with 3"):
        check_fields(read_filter("lang in (3)"), fields)


def test_a_dict_may_be_json():
    text = '{"lang": "en", "year": {"$gte": 2020}}'
    assert read_filter(f" {text}") == read_filter({"lang": "en", "year": {"$gte": 2020}})
    with pytest.raises(InputError, match="not JSON"):
        read_filter("{lang: 1}")
