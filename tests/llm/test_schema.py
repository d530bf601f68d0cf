"""JSON by a schema: which schemas and which answers are refused; jsonschema is the judge."""

import pytest
from schemas import SCHEMAS, record

from polyvec.errors import SettingsError
from polyvec.llm.answers import Answer
from polyvec.llm.function import FunctionLanguageModel
from polyvec.llm.schema import check_schema, parse, with_value

PAIR = record(a={"type": "integer"}, day={"type": "string", "format": "date"})
GOOD = '{"a": 1, "day": "2024-02-29"}'


@pytest.mark.parametrize("name", SCHEMAS)
def test_usual_schemas_are_accepted(name):
    check_schema(SCHEMAS[name])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([1], r"must be a JSON schema \(a dict\), got \[1\]"),
        ({"type": "foo"}, r"schema: \$.type: 'foo'"),
        (record(a={"minLength": "3"}), r"\$.properties.a.minLength: '3' is not of type 'integer'"),
        ({"required": "a"}, r"\$.required"),
        ({"pattern": "("}, r"\$.pattern: '\(' is not a 'regex'"),
        ({"enum": {1}}, "schema is not JSON"),
        ({"minimum": float("nan")}, "schema is not JSON"),
        ({"$schema": "https://example.org/mine"}, "is not known"),
        ({"$schema": 3}, r"\$schema 3 is not known"),
        ({"items": {"$ref": "#/$defs/a"}}, r"'#/\$defs/a' leads to no place"),
        ({"$ref": "https://example.org/a"}, "leads to no place in the schema"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"type": "string", "maxlength": 3}, "'maxlength' is not known. Did you mean 'maxLength'"),
        ({"items": {"require": ["a"]}}, "'require' is not known. Did you mean 'required'"),
    ],
)
def test_malformed_schemas_are_refused_before_anything_is_written(schema, message):
    asked = []
    model = FunctionLanguageModel(lambda prompt: asked.append(prompt) or "1")
    with pytest.raises(SettingsError, match=message) as caught:
        model.generate(["a"], schema=schema)
    assert "\n" not in str(caught.value) and not asked


def test_a_pydantic_model_gives_its_schema():
    pydantic = pytest.importorskip("pydantic")

    class Pair(pydantic.BaseModel):
        a: int
        b: list[str] | None = None

    check_schema(Pair.model_json_schema())
    with pytest.raises(SettingsError, match=r"model_json_schema\(\)"):
        check_schema(Pair)


@pytest.mark.parametrize(
    "schema",
    [
        record(**{"$ref": {"type": "string"}, "maxlength": {"type": "null"}}),
        {"const": {"$ref": "#/nowhere", "maxlength": 1}},
        {"type": "object", "title": "x", "example": {}, "x-order": 3, "discriminator": {}},
        {"$id": "https://a.b/c", "$defs": {"d": {"$anchor": "x"}}, "$ref": "#x"},
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"a": {}},
            "items": [{"$ref": "#/definitions/a"}],
        },
    ],
)
def test_keys_of_values_and_other_drafts_are_no_mistakes(schema):
    check_schema(schema)


@pytest.mark.parametrize("text", [GOOD, f" \n{GOOD}\n"])
def test_a_value_of_the_schema(text):
    assert parse(text, PAIR) == ({"a": 1, "day": "2024-02-29"}, None)
    assert parse("null", {"type": "null"}) == (None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the answer is empty"),
        (f"Sure! {GOOD}", "Expecting value, found 'Sure!"),
        (f"{GOOD} That is all.", "Extra data, found 'That is all.'"),
        (f"```json\n{GOOD}\n```", "code fence"),
        (GOOD[:-1], "the text ends"),
        (GOOD.replace('"', "'"), "double quotes"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1e999}', "1e999 is too large"),
        ('{"a": %s}' % ("9" * 5000), "5000 digits is too large"),
        ('{"a": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1}', r"not of the schema: $: 'day' is a required property"),
        ('{"a": 1.5, "day": "2024-02-29"}', "$.a: 1.5 is not of type 'integer'"),
        ('{"a": 1, "day": "2024-02-31"}', "$.day: '2024-02-31' is not a 'date'"),
        ('{"a": "%s", "day": "2024-02-29"}' % ("\\n x" * 1000), "is not of type 'integer'"),
    ],
)
def test_what_is_not_of_the_schema_is_an_error_and_never_repaired(text, message):
    value, error = parse(text, PAIR)
    assert value is None and message in error
    assert "\n" not in error and len(error) < 250


def test_whole_pairs_of_surrogates_are_characters():
    assert parse('"\\ud83d\\ude00"', {"type": "string", "maxLength": 1}) == ("😀", None)


@pytest.mark.parametrize("digits", ["8.2", "5.8", "0", "-0.3", "1e22", "7"])
def test_multiples_are_counted_in_decimals(digits):
    schema = {"type": "number", "multipleOf": 0.1}
    assert parse(digits, schema) == (float(digits), None)
    assert "0.25 is not a multiple of 0.1" in parse("0.25", schema)[1]


@pytest.mark.parametrize(
    ("text", "finish", "value", "error"),
    [
        (GOOD, "stop", {"a": 1, "day": "2024-02-29"}, None),
        (GOOD, "length", {"a": 1, "day": "2024-02-29"}, None),
        (GOOD[:9], "length", None, "cut by max_new_tokens after 7 tokens: not complete"),
        ('{"a": 1}', "length", None, "not of the schema: $: 'day' is a required property"),
        (GOOD, "refusal", None, "refused"),
    ],
)
def test_an_answer_has_its_value_or_an_error(text, finish, value, error):
    found = with_value(Answer(text, finish, 7), PAIR)
    assert (found.text, found.finish, found.parsed, found.error) == (text, finish, value, error)


def test_a_cut_number_may_lack_digits():
    found = with_value(Answer("12", "length", 2), {"type": "integer"})
    assert found.parsed is None and "cut by max_new_tokens" in found.error
    assert with_value(Answer("12", "stop", 2), {"type": "integer"}).parsed == 12
    assert with_value(Answer("true", "length", 1), {"type": "boolean"}).parsed is True


def test_without_a_schema_an_answer_stays():
    answer = Answer("no JSON", "stop", 2)
    assert with_value(answer, None) is answer


def test_answers_of_a_function_are_read_and_counted():
    model = FunctionLanguageModel({"a": GOOD, "b": "none"}.get)
    with pytest.warns(match="1 of 2 answers have problems: 1 not of the schema"):
        found = model.generate(["a", "b"], schema=PAIR)
    assert found[0].answer.parsed == {"a": 1, "day": "2024-02-29"}
    assert found[1].answer.parsed is None and "Expecting value" in found[1].answer.error
