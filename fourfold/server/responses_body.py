"""The body of /v1/responses, field by field."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fourfold.engine.sampler import Sampling
from fourfold.server.asking import sampling_of
from fourfold.server.chat_body import Effort, Function, UserId
from fourfold.server.errors import bad
from fourfold.server.fields import COMMON, Body
from fourfold.server.settings import Settings

LOGPROBS = "message.output_text.logprobs"
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class Reasoning(Body):
    """How much the model thinks."""

    accepted: ClassVar = {
        "summary": "thoughts come as they are",
        "generate_summary": "thoughts come as they are",
        "context": "thoughts are kept as the chat format keeps them",
    }
    effort: Effort | None = None


class Text(Body):
    """What the text of the answer has to be."""

    accepted: ClassVar = {"verbosity": "say it in the prompt"}
    format: dict[str, Any] | None = None

    def response_format(self) -> dict[str, Any] | None:
        """As Chat Completions has it: what a schema is made of stands in an object of its own."""
        if self.format is None or self.format.get("type") != "json_schema":
            return self.format
        return {"type": "json_schema", "json_schema": {name: v for name, v in self.format.items() if name != "type"}}


class ResponseTool(Function):
    """A tool that the model may call. image_generation says that it may draw, which it may anyway."""

    accepted: ClassVar = dict.fromkeys(("allowed_callers", "defer_loading", "async", "output_schema"), "the caller runs all tools")
    type: Literal["function", "image_generation"]
    name: str = Field("", pattern=r"^[a-zA-Z0-9_.-]{0,128}$")


class StreamOptions(Body):
    """What a stream holds beside the answer."""

    accepted: ClassVar = {"include_obfuscation": "nothing is padded"}


class ResponseBody(Body):
    """A response to be made."""

    endpoint: ClassVar = "/v1/responses"
    accepted: ClassVar = {name: why for name, why in COMMON.items() if name not in ("store", "metadata")} | {
        "max_tool_calls": "the caller runs all tools",
        "prompt_cache_options": "prefixes are found by what they say",
        "client_metadata": "stored nowhere",
    }
    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = Field(None, description="Keep the response, so that others can go on from it; by default true.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = Field(None, description=f"{LOGPROBS} has an effect; what else there is does not exist here.")
    text: Text | None = None
    reasoning: Reasoning | None = None
    tools: list[ResponseTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most.")
    metadata: Metadata | None = Field(None, max_length=16)
    truncation: Literal["disabled"] | None = Field(None, description="A prompt that is too long is an error.")
    background: Literal[False] | None = Field(None, description="Responses are made while the client waits.")
    user_id: UserId | None = Field(None, description="Prefixes are shared between requests of one user_id only.")

    def sampling(self, settings: Settings, usual: Mapping[str, float]) -> Sampling:
        """How the answer is drawn, `usual` where the request does not say. Raises what `sampling_of` raises."""
        seed = None if self.seed is None else self.seed % 2**62
        given = {"temperature": self.temperature, "top_p": self.top_p, "seed": seed}
        return sampling_of(settings, usual, self.max_output_tokens, "max_output_tokens", **given)

    def likeliest(self) -> int | None:
        """How many likeliest tokens to report."""
        wanted = self.top_logprobs is not None or LOGPROBS in (self.include or [])
        return (self.top_logprobs or 0) if wanted else None

    def listed_tools(self) -> list[dict[str, Any]] | None:
        """Tools as Chat Completions has them. Raises ApiError for one without a name, and two of one name."""
        made: dict[str, dict[str, Any]] = {}
        for i, tool in enumerate(self.tools or []):
            if tool.type != "function":
                continue
            if not tool.name or tool.name in made:
                raise bad(f"tools[{i}].name", "is there twice" if tool.name else "is missing; give it")
            made[tool.name] = {"type": "function", "function": tool.model_dump(exclude_unset=True, exclude={"type"})}
        return list(made.values()) or None

    def choice(self) -> str | dict[str, Any] | None:
        """tool_choice as Chat Completions has it."""
        if not isinstance(self.tool_choice, dict) or self.tool_choice.get("type") != "function":
            return self.tool_choice
        return {"type": "function", "function": {"name": self.tool_choice.get("name")}}
