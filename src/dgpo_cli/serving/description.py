"""What the OpenAPI description of a server says of requests that this program reads itself, and of its errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def responses(form: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Every error is JSON of one form."""
    return {status: {"model": form} for status in statuses}


def request_body(model: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """For `openapi_extra`: a JSON body of this form, the forms of its parts written out where they are used.

    References would lead nowhere: those that pydantic writes begin at the schema, those of OpenAPI at the document.
    """
    schema = model.model_json_schema()
    content = {"schema": _written_out(schema, schema.pop("$defs", {})), "example": dict(example)}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _written_out(value: Any, parts: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_written_out(item, parts) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _written_out(parts[value["$ref"].removeprefix("#/$defs/")], parts)
    return {name: _written_out(item, parts) for name, item in value.items()}
