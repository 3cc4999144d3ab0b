"""V3.2: as V3.1, with DSML calls, results in a block of text, and thoughts kept while tools are being called.

    BOS system <｜User｜>text<｜Assistant｜><think>...</think>text ⏎⏎<｜DSML｜function_calls>...</｜DSML｜function_calls>EOS
    ⏎⏎<function_results>⏎<result>text</result>...⏎</function_results>⏎⏎<think>...</think>text EOS

(no spaces). Thoughts are shown after the last message of a user only. Source: the encoder that ships with DeepSeek-V3.2; it has no
Jinja template. Where thoughts are missing after the last user, that encoder refuses; here they are empty.
"""

from collections.abc import Iterator
from typing import Any

from fourfold.text.chat import Part, last_user
from fourfold.text.chats.dsml import Dsml, published_tools, response_format
from fourfold.text.chats.format import ChatFormat, Request, calls_of, control, plain
from fourfold.text.chats.grammar import thoughts
from fourfold.text.chats.parser import Parser, Steps
from fourfold.text.chats.tokens import ASSISTANT, BOS, DSML, EOS, THINK, THOUGHT, USER
from fourfold.text.settings import TextSettings

ASKING = ("user", "developer")


class V32(ChatFormat):
    name, end, required = "v3.2", EOS, (BOS, EOS, USER, ASSISTANT, THINK, THOUGHT)
    marks = (THINK, THOUGHT, DSML)
    roles = ("system", "user", "assistant", "tool", "developer")

    def __init__(self, tools: str | None = None) -> None:
        self.dsml = Dsml("function_calls", tools)

    @classmethod
    def of(cls, settings: TextSettings) -> "V32":
        return cls(published_tools(settings))

    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        messages = self.with_host(messages, request)
        host, last = self.host(messages), last_user(messages, ASKING)
        yield control(BOS)
        for i, message in enumerate(messages):
            final = i == len(messages) - 1
            extra = list(self.sections(request)) if i == host else []
            opening = [control(ASSISTANT)] if message["role"] in ASKING else [plain("\n\n")]
            opening.append(control(THINK if request.thinking and i >= last else THOUGHT))
            if message["role"] == "assistant":
                yield from self.said(message, request.thinking and i > last)
                opening = []
            elif message["role"] == "tool":
                yield from self._result(messages, i)
                opening = opening if final or messages[i + 1]["role"] != "tool" else []
            elif message["role"] == "system":
                yield plain(message["content"])
                yield from extra
                opening = []
            else:
                yield control(USER)
                yield from self._asked(message, extra)
            if request.prompt or not final:
                yield from opening

    def host(self, messages: list[dict[str, Any]]) -> int:
        """The place of the message that tools and response format stand in: the first from the system, else a developer; or -1."""
        roles = [message["role"] for message in messages]
        return next((roles.index(role) for role in ("system", "developer") if role in roles), -1)

    def with_host(self, messages: list[dict[str, Any]], request: Request) -> list[dict[str, Any]]:
        """The messages, with an empty system message in front if there is something to say and no place for it."""
        wanted = request.functions or request.response_format is not None
        return [{"role": "system", "content": ""}, *messages] if wanted and self.host(messages) < 0 else messages

    def sections(self, request: Request) -> Iterator[Part]:
        """What stands behind the system text: tools and response format."""
        if request.functions:
            yield plain("\n\n")
            yield from self.dsml.tools(request.functions)
        yield from response_format(request.response_format)

    def _asked(self, message: dict[str, Any], extra: list[Part]) -> Iterator[Part]:
        yield from extra
        said = "\n\n# The user's message is: " if message["role"] == "developer" else ""
        yield plain(said + message["content"])

    def _result(self, messages: list[dict[str, Any]], i: int) -> Iterator[Part]:
        first = i == 0 or messages[i - 1]["role"] != "tool"
        last = i + 1 == len(messages) or messages[i + 1]["role"] != "tool"
        text = f"\n<result>{messages[i]['content']}</result>"
        yield plain("\n\n<function_results>" * first + text + "\n</function_results>" * last)

    def said(self, message: dict[str, Any], thinking: bool) -> Iterator[Part]:
        """A turn of the assistant."""
        if thinking:
            yield plain(message.get("reasoning_content"), own=True)
            yield control(THOUGHT, own=True)
        yield plain(message.get("content"), own=True)
        yield from self.dsml.calls(calls_of(message))
        if not message.get("prefix"):
            yield control(EOS, own=True)

    def reply(self, message: dict[str, Any], opened: bool = False) -> Iterator[Part]:
        yield from self.said(message, opened)

    def grammar(self, p: Parser, opened: bool) -> Steps[None]:
        yield from thoughts(p, opened)
        yield from self.dsml.answer(p)
