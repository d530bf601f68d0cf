"""What the server says of itself: its OpenAPI document, and the same as a page.

The page loads nothing from elsewhere, as those of FastAPI do: servers have no network, often.
"""

from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from polyvec.serve.guard import OPEN
from polyvec.serve.routes import ERRORS

# Of any route, before it is reached.
ALWAYS = (400, 401, 403, 408, 413, 415, 429)
ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}


class DocumentedApp(FastAPI):
    """An application whose OpenAPI document has the errors and keys of the guard before it."""

    needs_key = False

    def openapi(self) -> dict[str, Any]:
        """The document, OpenAPI 3.1."""
        if self.openapi_schema is None:
            found = get_openapi(
                title=self.title,
                version=self.version,
                description=self.description,
                routes=self.routes,
            )
            if self.needs_key:
                schemes = {"key": {"type": "http", "scheme": "bearer"}}
                found["components"]["securitySchemes"] = schemes
            for path, operations in found["paths"].items():
                for operation in operations.values():
                    if self.needs_key and path not in OPEN:
                        operation["security"] = [{"key": []}]
                    answers = operation["responses"]
                    answers.pop("422", None)  # FastAPI's, for what it checks; all of it is text
                    for status in ALWAYS:
                        answers.setdefault(
                            str(status),
                            {"description": ERRORS[status]["description"], "content": ERROR},
                        )
            for name in ("HTTPValidationError", "ValidationError"):
                found["components"]["schemas"].pop(name, None)
            self.openapi_schema = found
        return self.openapi_schema


def page(document: dict[str, Any]) -> str:
    """The document as HTML: routes, the fields of their requests, their answers."""
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            parts.append(_fields(_request(operation)))
            answers = "; ".join(
                f"{status} {each['description']}"
                for status, each in sorted(operation["responses"].items())
            )
            parts.append(f'<p class="hint">{escape(answers)}</p>')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>polyvec: routes</title>'
        '<link rel="stylesheet" href="page.css"><h1>Routes</h1>'
        f"<p>{escape(document['info']['description'])} The same for programs: "
        '<a href="openapi.json">openapi.json</a>.</p>' + "".join(parts) + "</html>"
    )


def _request(operation: dict[str, Any]) -> list[tuple[str, dict[str, Any], bool]]:
    """Name, schema and whether it must be there, of each field or parameter."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = body.get("schema", {})
    fields = [
        (name, each, name in schema.get("required", ()))
        for name, each in schema.get("properties", {}).items()
    ]
    return fields + [
        (each["name"], each["schema"], each.get("required", False))
        for each in operation.get("parameters", ())
    ]


def _fields(fields: list[tuple[str, dict[str, Any], bool]]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if required else ''}</td>"
        f"<td>{escape(_kind(schema))}</td><td>{escape(schema.get('description', ''))}</td></tr>"
        for name, schema, required in fields
    )
    return f"<table>{rows}</table>" if rows else ""


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        kinds = [_kind(each) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    return str(schema.get("type", "any"))
