"""Bodies that come as a form: fields as in a JSON body, and files."""

import re
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from fourfold.server.fields import Body

B = TypeVar("B", bound=Body)
MOST_FIELDS = 100


async def form_of(request: Request, kind: type[B], file: str | None = None) -> tuple[B, bytes | None]:
    """The fields of a form or JSON body, and the bytes of the file that may be in the field `file`.

    Lists come as NAME[]. Raises RequestValidationError as a JSON body would.
    """
    if "json" in request.headers.get("content-type", ""):
        return _checked(kind, await _json(request)), None
    fields: dict[str, Any] = {}
    raw = None
    async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
        for name, value in form.multi_items():
            listed = re.fullmatch(r"(\w+)\[\d*\]", name)
            if listed:
                fields.setdefault(listed[1], []).append(value)
            elif isinstance(value, UploadFile) and name == file:
                raw = await value.read()
            else:
                fields[name] = value
    return _checked(kind, fields), raw


def documented(kind: type[Body], file: str | None = None) -> dict[str, Any]:
    """`openapi_extra` of an endpoint that reads its body by `form_of`."""
    schema = kind.model_json_schema()
    if file is None:
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    schema["properties"][file] = {"type": "string", "format": "binary"}
    schema.setdefault("required", []).append(file)
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:  # RecursionError, too deep to be read, is the caller's as well
        raise _invalid("json_invalid", str(error).splitlines()[0]) from error
    except RecursionError as error:
        raise _invalid("json_invalid", "too deep") from error


def _invalid(kind: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", 0), "msg": message, "ctx": {"error": message}}])


def _checked(kind: type[B], fields: Any) -> B:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from error
