"""The bodies of /v1/messages and /v1/messages/count_tokens, field by field."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from fourfold.engine.sampler import Sampling
from fourfold.server.asking import sampling_of
from fourfold.server.errors import bad
from fourfold.server.fields import Body
from fourfold.server.settings import Settings

CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Thinking(Body):
    """Whether the model thinks before it answers; adaptive leaves it to effort, or to the model's name."""

    accepted: ClassVar = {"budget_tokens": "max_tokens bounds thoughts and answer together", "display": "thoughts come as they are"}
    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """How much the model thinks, and what its answer has to be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ClientTool(Body):
    """A tool that the model may call; the client runs it."""

    accepted: ClassVar = dict.fromkeys(
        ("cache_control", "allowed_callers", "defer_loading", "eager_input_streaming", "input_examples"),
        "the caller runs all tools",
    )
    type: Literal["custom"] | None = None
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolChoice(Body):
    """Whether the model calls a tool: as it likes, one or more, the named one, or none."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Metadata(Body):
    """user_id: prefixes are shared between requests of one user_id only."""

    user_id: str | None = Field(None, max_length=2048)


class Prompted(Body):
    """What the model is to read."""

    endpoint: ClassVar = "/v1/messages/count_tokens"
    accepted: ClassVar = {
        "cache_control": "prefixes are found by what they say",
        "speed": "there is one",
        "user_profile_id": "not looked at",
        "workspace_id": "not looked at",
    }
    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[ClientTool] | None = Field(None, max_length=128)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def thinks(self) -> bool | None:
        """What the request says about thinking; None where it says nothing."""
        return {"enabled": True, "disabled": False}.get(self.thinking.type) if self.thinking else None

    def listed_tools(self) -> list[dict[str, Any]] | None:
        """Tools as Chat Completions has them. Raises ApiError for two of one name."""
        made: dict[str, dict[str, Any]] = {}
        for i, tool in enumerate(self.tools or []):
            if tool.name in made:
                raise bad(f"tools[{i}].name", f"{tool.name} is there twice; give each tool a name of its own")
            given = {"description": tool.description, "parameters": tool.input_schema, "strict": tool.strict}
            function = {"name": tool.name} | {name: value for name, value in given.items() if value is not None}
            made[tool.name] = {"type": "function", "function": function}
        return list(made.values()) or None

    def choice(self) -> str | dict[str, Any] | None:
        """tool_choice as Chat Completions has it."""
        if self.tool_choice is None:
            return None
        return CHOICES.get(self.tool_choice.type) or {"type": "function", "function": {"name": self.tool_choice.name}}

    def response_format(self) -> dict[str, Any] | None:
        """output_config.format as Chat Completions has it."""
        if self.output_config is None or self.output_config.format is None:
            return None
        return {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": self.output_config.format.schema_, "strict": True},
        }


class MessagesBody(Prompted):
    """Messages to be answered."""

    endpoint: ClassVar = "/v1/messages"
    accepted: ClassVar = Prompted.accepted | {
        "service_tier": "there is one",
        "inference_geo": "there is one",
        "container": "there is none",
        "diagnostics": "GET /metrics says why prefixes are not found",
        "context_management": "nothing is cut from a prompt",
    }
    max_tokens: int = Field(ge=1)
    metadata: Metadata | None = None
    stop_sequences: list[str] | None = Field(None, max_length=16)
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)

    def sampling(self, settings: Settings, usual: Mapping[str, float]) -> Sampling:
        """How the answer is drawn, `usual` where the request does not say. Raises what `sampling_of` raises."""
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "stop": self.stop_sequences}
        return sampling_of(settings, usual, self.max_tokens, **given)
