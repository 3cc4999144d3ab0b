"""The body of /v1/chat/completions, field by field."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fourfold.engine.sampler import Sampling
from fourfold.server.asking import sampling_of
from fourfold.server.errors import bad
from fourfold.server.fields import COMMON, Body
from fourfold.server.settings import Settings

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Bias = dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
Stop = str | list[str] | None
# What the published API takes and leaves out while the model thinks, and what stands in its place.
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
# user_id keeps prefixes apart; anything longer or stranger is refused, as the published API does.
UserId = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,512}$")]


class Message(Body):
    """One message in OpenAI's form. Of the assistant: reasoning_content (thoughts), images (drawn), prefix (to be continued)."""

    accepted: ClassVar = dict.fromkeys(("name", "refusal", "annotations", "audio", "function_call"), "not looked at")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = Field(None, description="The same as reasoning_content.")
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    images: list[dict[str, Any]] | None = None
    prefix: bool = False

    def ours(self) -> dict[str, Any]:
        """As text/chats takes it, its parts still in OpenAI's form."""
        made: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        thoughts = self.reasoning_content or self.reasoning
        given = {"reasoning_content": thoughts, "tool_calls": self.tool_calls, "images": self.images, "prefix": self.prefix}
        return made | {name: value for name, value in given.items() if value}


class Function(Body):
    """What a tool is called, what it does, and its arguments as JSON Schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class Thinking(Body):
    """Whether the model thinks before it answers."""

    accepted: ClassVar = {"budget_tokens": "max_tokens bounds thoughts and answer together"}
    type: Literal["enabled", "disabled", "auto"]


class TemplateOptions(Body):
    """What other servers hand to their chat template."""

    accepted: ClassVar = {"add_generation_prompt": "a prompt always ends where the assistant begins"}
    enable_thinking: bool | None = None
    thinking: bool | None = None


class StreamOptions(Body):
    """What a stream holds beside the answer."""

    accepted: ClassVar = {"include_obfuscation": "nothing is padded", "continuous_usage_stats": "usage comes once, at the end"}
    include_usage: bool = False


class SampledBody(Body):
    """What a request may say about how tokens are drawn, and for how many answers."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1: off.")
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: Bias | None = None
    seed: int | None = None
    stop: Stop = None
    n: int | None = Field(None, ge=1)

    def sampled(self) -> dict[str, Any]:
        """The fields as Sampling takes them."""
        names = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "stop")
        given = {name: getattr(self, name) for name in names}
        given["top_k"] = None if self.top_k is None else max(self.top_k, 0)
        given["seed"] = None if self.seed is None else self.seed % 2**62
        given["logit_bias"] = self.logit_bias and {int(token): bias for token, bias in self.logit_bias.items()}
        return given


class ChatBody(SampledBody):
    """A chat to be answered."""

    endpoint: ClassVar = "/v1/chat/completions"
    accepted: ClassVar = COMMON | {
        "modalities": "the model draws where it is asked to",
        "prediction": "drafts come from the model itself",
        "verbosity": "say it in the prompt",
        "web_search_options": "there is no search",
    }
    sometimes: ClassVar = dict.fromkeys(PLAIN, "has none while the model thinks; it does without thinking")
    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="The same as max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most.")
    response_format: dict[str, Any] | None = None
    thinking: Thinking | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None
    user_id: UserId | None = Field(None, description="Prefixes are shared between requests of one user_id only.")

    def thinks(self) -> bool | None:
        """What the request says about thinking, in whichever way; None where it says nothing."""
        if self.thinking is not None:
            return None if self.thinking.type == "auto" else self.thinking.type == "enabled"
        options = self.chat_template_kwargs or TemplateOptions()
        return options.enable_thinking if options.enable_thinking is not None else options.thinking

    def sampling(self, settings: Settings, usual: Mapping[str, float]) -> Sampling:
        """How the answer is drawn, `usual` where the request does not say. Raises what `sampling_of` raises."""
        field = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return sampling_of(settings, usual, getattr(self, field), field, **self.sampled())

    def likeliest(self) -> int | None:
        """How many likeliest tokens to report. Raises ApiError for top_logprobs without logprobs."""
        if self.top_logprobs and not self.logprobs:
            raise bad("top_logprobs", "needs logprobs true; set it")
        return (self.top_logprobs or 0) if self.logprobs else None

    def listed_tools(self) -> list[dict[str, Any]] | None:
        """Tools as they were sent. Raises ApiError for two of one name."""
        if not self.tools:
            return None
        names = [tool.function.name for tool in self.tools]
        twice = next((i for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise bad(f"tools[{twice}].function.name", f"{names[twice]} is there twice; give each tool a name of its own")
        return [tool.model_dump(exclude_unset=True) for tool in self.tools]
