"""The page ``/docs``: the OpenAPI description as HTML, without scripts and without files of other servers."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from detrs.html_table import text

STYLE_PATH = "/docs/reference.css"


def style() -> bytes:
    """The style sheet of the page."""
    return files("detrs.serving").joinpath("reference.css").read_bytes()


def reference_page(openapi: Mapping[str, Any]) -> str:
    """The page of an OpenAPI 3.1 description, as an application of FastAPI generates it."""
    info = openapi["info"]
    sections = [
        _operation(method, path, operation)
        for path, item in openapi["paths"].items()
        for method, operation in item.items()
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(info["title"])}</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<link rel="stylesheet" href="{STYLE_PATH}"></head><body><main>'
        f"<h1>{text(info['title'])}</h1><p>{text(info.get('description', ''))} detrs {text(info['version'])}. "
        '<a href="/openapi.json">openapi.json</a></p>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [
        f'<section><h2><span class="method">{text(method.upper())}</span> <code>{text(path)}</code></h2>',
        f"<p>{text(operation.get('description', operation.get('summary', '')))}</p>",
    ]
    if parameters := operation.get("parameters"):
        named = [
            (f"<code>{text(each['name'])}</code>", text(_kind(each["schema"])), text(each.get("description", "")))
            for each in parameters
        ]
        parts.append(_table("Query parameters", ("name", "type", "meaning"), named))
    if body := operation.get("requestBody"):
        rows = [
            (f"<code>{text(kind)}</code>", f"<code>{text(_shape(content['schema']))}</code>")
            for kind, content in body["content"].items()
        ]
        parts.append(_table(f"Body. {text(body.get('description', ''))}", ("content type", "content"), rows))
    rows = [(f"<code>{text(status)}</code>", text(each["description"])) for status, each in _responses(operation)]
    parts.append(_table("Answers", ("status", "meaning"), rows))
    for _, each in _responses(operation):
        for content in each.get("content", {}).values():
            if "example" in content:
                example = json.dumps(content["example"], indent=2)
                parts.append(f"<h3>Example</h3><pre>{text(example)}</pre>")
    return "".join(parts) + "</section>"


def _responses(operation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(operation["responses"].items())


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in words: ``number, 0 to 1``."""
    options = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    (schema,) = options[:1]
    limits = [schema[key] for key in ("minimum", "maximum") if key in schema]
    words = " to ".join(map(str, limits)) if len(limits) == 2 else f"at least {limits[0]}" if limits else ""
    kind = f"list of {schema['items']['type']}s" if schema.get("type") == "array" else str(schema.get("type"))
    return f"{kind}, {words}" if words else kind


def _shape(schema: Mapping[str, Any]) -> str:
    """A schema of a body, on one line: ``{"images": [base64, ...]}``."""
    if schema["type"] == "object":
        return "{" + ", ".join(f'"{name}": {_shape(each)}' for name, each in schema["properties"].items()) + "}"
    if schema["type"] == "array":
        return f"[{_shape(schema['items'])}, ...]"
    return {"binary": "file", "byte": "base64"}.get(schema.get("format", ""), schema["type"])


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h3>{title}</h3><table><thead><tr>{header}</tr></thead><tbody>{lines}</tbody></table>"
