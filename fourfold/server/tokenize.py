"""Text to tokens of a model and back, chats included."""

import asyncio
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field

from fourfold.engine.prompts import prompt_of
from fourfold.server.chat_body import Message, Tool
from fourfold.server.errors import ApiError, bad
from fourfold.server.fields import Body
from fourfold.server.media import Intake, limits_of
from fourfold.server.models import Served, serving_of

router = APIRouter(tags=["tokens"])


class TokenizeBody(Body):
    """Text, or messages as the model would read them."""

    endpoint: ClassVar = "/tokenize"
    model: str | None = Field(None, description="By default the first that is served.")
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    thinking: bool = Field(False, description="Of messages: as if the model were to think.")
    add_generation_prompt: bool = Field(True, description="Of messages: end where the assistant begins.")
    add_special_tokens: bool = Field(True, description="Of a prompt: begin as the model's texts begin.")
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """Token ids."""

    endpoint: ClassVar = "/detokenize"
    model: str | None = Field(None, description="By default the first that is served.")
    tokens: list[Annotated[int, Field(ge=0)]]


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    """Ids of a text or a chat; what stands for pictures, clips and sound counts, and has id 0."""
    served = _served(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad("prompt", "give either prompt or messages")
    tokens = await asyncio.to_thread(_ids, served, body, Intake(serving_of(request).settings, served.model))
    answer: dict[str, Any] = {"count": len(tokens), "max_model_len": served.context, "tokens": tokens}
    if body.return_token_strs:
        answer["token_strs"] = [served.tokenizer.decode([token], skip_special=False) for token in tokens]
    return answer


@router.post("/detokenize")
def detokenize(body: DetokenizeBody, request: Request) -> dict[str, Any]:
    """The text of ids, control tokens by their names."""
    served = _served(request, body.model)
    check_ids(body.tokens, served, "tokens")
    return {"prompt": served.tokenizer.decode(body.tokens, skip_special=False)}


def check_ids(ids: list[int], served: Served, field: str) -> None:
    """Raise ApiError for an id outside the vocabulary."""
    most = served.model.config.vocab_size
    wrong = next((id for id in ids if not 0 <= id < most), None)
    if wrong is not None:
        raise bad(field, f"holds {wrong}, which is no id of {served.name}; they go from 0 to {most - 1}")


def _ids(served: Served, body: TokenizeBody, intake: Intake) -> list[int]:
    if body.prompt is not None:
        return (served.tokenizer.prefix if body.add_special_tokens else []) + served.tokenizer.encode(body.prompt)
    messages = intake.messages([message.ours() for message in body.messages or []])
    options = {"thinking": body.thinking, "add_generation_prompt": body.add_generation_prompt}
    tools = [tool.model_dump(exclude_unset=True) for tool in body.tools] if body.tools else None
    limits = limits_of(intake.settings)
    span, _ = prompt_of(served.model, messages, served.speaker(), limits, tools=tools, **options)
    return span.tokens.tolist()


def _served(request: Request, name: str | None) -> Served:
    models = serving_of(request).models
    if name is None and models.first is None:
        raise ApiError(400, "model: none is served here", param="model")
    return models.served(name or models.first or "")
