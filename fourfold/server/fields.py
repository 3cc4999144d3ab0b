"""What bodies may hold: fields that do something, fields taken without effect, by name; anything else is refused by name."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, model_validator

from fourfold.server.errors import ApiError

router = APIRouter(tags=["about"])
KINDS = ("str", "int", "float", "bool", "dict", "list")  # as pydantic calls the members of a union
LISTS: dict[str, Mapping[str, str]] = {}  # endpoint -> its fields without effect, and why

# What clients send to every endpoint that answers, and servers of this kind do nothing about.
COMMON = {
    "user": "a name for abuse reports; user_id is what keeps prefixes apart here",
    "metadata": "stored nowhere",
    "store": "answers are not stored",
    "service_tier": "there is one",
    "safety_identifier": "not looked at",
    "prompt_cache_key": "prefixes are found by what they say",
    "prompt_cache_retention": "what is used last stays longest",
}


class Body(BaseModel):
    """A request body. `endpoint` names its list of `accepted` fields, which are dropped; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")
    accepted: ClassVar[Mapping[str, str]] = {}
    sometimes: ClassVar[Mapping[str, str]] = {}  # fields that do something, but not always; published beside `accepted`
    endpoint: ClassVar[str | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        if cls.endpoint is None:
            return
        LISTS[cls.endpoint] = without_effect = {**cls.accepted, **cls.sometimes}
        without = "; ".join(f"{name} ({why})" for name, why in without_effect.items())
        cls.__doc__ = f"{cls.__doc__ or ''}\n\nTaken without effect: {without}. Any other field that is not listed is refused."
        cls.model_rebuild(force=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_accepted(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: given for name, given in value.items() if name not in cls.accepted}


@router.get("/v1/fields")
def fields() -> dict[str, dict[str, str]]:
    """Fields that are taken without effect, with the reason, by endpoint. Other fields that an endpoint does not know are a 400."""
    return {endpoint: dict(accepted) for endpoint, accepted in LISTS.items()}


def refusal(error: RequestValidationError, json_sent: bool) -> ApiError:
    """A body that does not fit, as one line about its first fault."""
    faults = error.errors()
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    kind, where = fault["type"], _path(fault["loc"])
    if kind == "json_invalid":
        return ApiError(400, f"body: is not JSON ({fault.get('ctx', {}).get('error', fault['msg'])}); check it", param="body")
    if not json_sent and where == "body":
        return ApiError(415, "content-type: must be application/json", param="content-type")
    said = {
        "missing": "is missing; give it",
        "extra_forbidden": "is not a known field; leave it out (GET /v1/fields lists what is taken)",
    }
    alike = [each["msg"][0].lower() + each["msg"][1:] for each in faults if _path(each["loc"]) == where]
    message = said.get(kind) or ", or ".join(dict.fromkeys(alike))  # several for a field that may be of several kinds
    if kind == "value_error":
        message = str(fault["ctx"]["error"])
    return ApiError(400, f"{where}: {message}", param=where, code="unknown_field" if kind == "extra_forbidden" else None)


def _path(loc: Sequence[str | int]) -> str:
    """("body", "messages", 0, "role") as messages[0].role; the names that pydantic gives to members of a union are left out."""
    parts = [part for part in loc[1:] if isinstance(part, int) or (part.isidentifier() and part not in KINDS)]
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "body"
