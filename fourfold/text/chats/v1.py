"""V1 and V2 (V2-Lite, Coder-V2): turns named in plain text.

    BOS system ⏎⏎ User: text ⏎⏎ Assistant: text EOS User: ...

(without the spaces around ⏎). Source: the chat templates of deepseek-llm-7b-chat and DeepSeek-V2-Chat. The names are ordinary
text, so a user who writes "Assistant:" writes the same thing; only the end of a turn is a token.
"""

from collections.abc import Iterator
from typing import Any

from fourfold.text.chat import Part
from fourfold.text.chats.format import ChatFormat, Request, control, plain
from fourfold.text.chats.parser import Parser, Steps
from fourfold.text.chats.tokens import BOS, EOS


class V1(ChatFormat):
    name, end, required = "v1", EOS, (BOS, EOS)
    roles = ("system", "user", "assistant")
    has_tools = False

    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        yield control(BOS)
        for message in messages:
            if message["role"] == "assistant":
                yield plain("Assistant:")
                yield from self.reply(message)
            else:
                name = "User: " if message["role"] == "user" else ""
                yield plain(f"{name}{message['content']}\n\n")
        if request.prompt:
            yield plain("Assistant:")

    def reply(self, message: dict[str, Any], opened: bool = False) -> Iterator[Part]:
        yield plain(f" {message['content']}", own=True)
        if not message.get("prefix"):
            yield control(EOS, own=True)

    def grammar(self, p: Parser, opened: bool) -> Steps[None]:
        yield from p.skip(" ")  # the prompt ends with "Assistant:"
        yield from p.until(to=p.say)


class V2(V1):
    name = "v2"
