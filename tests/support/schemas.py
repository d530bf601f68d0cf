"""JSON schemas of the kinds that users write; every one has a bounded number of values."""

TEXT = {"type": "string", "maxLength": 8}


def record(*required: str, **properties: object) -> dict[str, object]:
    """A schema of an object with these keys and no others; all required unless some are named."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required or properties),
        "additionalProperties": False,
    }


DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMAS: dict[str, dict[str, object]] = {
    "record": record(
        query={"type": "string", "minLength": 1, "maxLength": 40},
        positive={"type": "string", "maxLength": 60},
        kind={"enum": ["easy", "hard"]},
        grade={"type": "integer", "minimum": 1, "maximum": 5},
    ),
    "nested": record(a=record(b=record(c={"type": "boolean"}))),
    "bounded array": record(tags={"type": "array", "items": TEXT, "minItems": 2, "maxItems": 4}),
    "enum": {"enum": ["red", "dark blue", 3, None, True]},
    "optional keys": record("b", a=DIGIT, b=TEXT, c={"type": "boolean"}),
    "integer range": {"type": "integer", "minimum": -17, "maximum": 1234},
    "number range": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 10},
    "multiples": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "format": record(day={"type": "string", "format": "uuid"}),
    "escapes": record(größe={"const": 'Größe "XL"\n\\ 😀'}, text=TEXT),
    "any of": {"anyOf": [record(yes=TEXT), DIGIT, {"type": "null"}]},
    "references": {
        "$defs": {
            "node": record(name=TEXT, next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]}),
            "leaf": record(value=DIGIT),
        },
        "$ref": "#/$defs/node",
    },
    "constant": {"const": {"a": [1, "x", None, {"b": -2.5}]}},
    "null": {"type": "null"},
    "empty object": {"type": "object", "additionalProperties": False},
    "a string": {"type": "string", "minLength": 3, "maxLength": 10},
    "an array": {
        "type": "array",
        "items": {
            "type": "array",
            "prefixItems": [{"type": "boolean"}, DIGIT],
            "items": False,
            "minItems": 2,
        },
        "minItems": 1,
        "maxItems": 3,
    },
    "two types": {
        "type": "array",
        "items": {"type": ["string", "null"], "maxLength": 3},
        "maxItems": 2,
    },
}
