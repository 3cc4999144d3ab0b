"""V4: as V3.2, with tool results inside the user's turn, and thoughts kept throughout when there are tools.

    BOS system <｜User｜>text<｜Assistant｜><think>...</think>text ⏎⏎<｜DSML｜tool_calls>...</｜DSML｜tool_calls>EOS
    <｜User｜><tool_result>text</tool_result>⏎⏎<tool_result>...<｜Assistant｜><think>...</think>text EOS

(no spaces). Without tools (and with `drop_thinking`, the default) thoughts before the last user turn are dropped, together with
developer messages. Results come in the order of the calls they answer. Effort max puts a fixed instruction first, in thinking mode.
A user message may have a `task` (action, title, query, authority, domain, read_url): one token that asks for one short answer.
Source: the encoder that ships with DeepSeek-V4. Its two long wordings, about tools and about effort max, are read from the folder's
encoder; without it ours stand in their place. The order of results whose call is unknown, and what follows a chat that does not
end with a user, are unconfirmed.
"""

from collections.abc import Iterator
from typing import Any

from fourfold.errors import DataError
from fourfold.text.chat import Part, last_user
from fourfold.text.chats.dsml import Dsml, published_tools
from fourfold.text.chats.format import Request, calls_of, control, marked, plain
from fourfold.text.chats.tokens import ASSISTANT, BOS, DSML, REMINDER, THINK, THOUGHT, USER
from fourfold.text.chats.v32 import ASKING, V32
from fourfold.text.settings import TextSettings

EFFORT_MAX = "Think as long and as thoroughly as you can: take the problem apart, and check every step and every alternative.\n\n"
TASKS = ("action", "title", "query", "authority", "domain", "read_url")
OPENED = ("assistant", "latest_reminder")  # before these, and at the end, a user's turn opens the assistant's


class V4(V32):
    name = "v4"
    roles = ("system", "user", "assistant", "tool", "developer", "latest_reminder")

    def __init__(self, tools: str | None = None, effort_max: str | None = None, drop_thinking: bool = True) -> None:
        self.dsml = Dsml("tool_calls", tools)
        self.effort_max, self.drop_thinking = effort_max or EFFORT_MAX, drop_thinking

    @classmethod
    def of(cls, settings: TextSettings) -> "V4":
        return cls(published_tools(settings), settings.constant("REASONING_EFFORT_MAX"))

    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        turns = _with_results(messages)
        drop = self.drop_thinking and not request.functions
        if drop and request.thinking:
            last = last_user(turns, ASKING)
            turns = [turn for i, turn in enumerate(turns) if i >= last or turn["role"] != "developer"]
        turns = self.with_host(turns, request)
        host, last = self.host(turns), last_user(turns, ASKING)
        yield control(BOS)
        if request.thinking and request.effort == "max":
            yield from marked(self.effort_max, (THINK, THOUGHT, DSML))
        for i, turn in enumerate(turns):
            asked = turns[i - 1].get("task") if i else None
            yield from self._turn(turn, request.thinking and asked is None and (not drop or i > last))
            if i == host:
                yield from self.sections(request)
            final = i + 1 == len(turns)
            if request.prompt if final else turns[i + 1]["role"] in OPENED:
                yield from self._opening(turn, request.thinking and (not drop or i >= last), final)

    def _turn(self, turn: dict[str, Any], shown: bool) -> Iterator[Part]:
        role = turn["role"]
        if role == "assistant":
            yield from self.said(turn, shown)
            return
        if role != "system":
            yield control(REMINDER if role == "latest_reminder" else USER)
        yield plain(turn["content"])

    def _opening(self, turn: dict[str, Any], thinking: bool, final: bool) -> Iterator[Part]:
        """Where the assistant begins."""
        task = turn.get("task")
        if task not in (None, "action"):
            yield control(f"<｜{task}｜>")
        elif turn["role"] in ASKING or final:
            yield control(ASSISTANT)
            yield control(THINK if thinking else THOUGHT)
            if task:
                yield control(f"<｜{task}｜>")


def _with_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns: neighbouring messages of users and tools become one, its `blocks` with results in the order of the calls."""
    turns: list[dict[str, Any]] = []
    places: dict[str, int] = {}  # of the calls of the last assistant turn that made any, by id
    for i, message in enumerate(messages):
        role, task = message["role"], message.get("task")
        if task is not None and (task not in TASKS or role != "user"):
            raise DataError(f"messages[{i}].task: must be one of {', '.join(TASKS)}, in a user's message")
        if role == "assistant" and calls_of(message):
            places = {str(call["id"]): place for place, call in enumerate(message["tool_calls"]) if call.get("id")}
        if role not in ("user", "tool"):
            turns.append(message)
            continue
        if not turns or turns[-1]["role"] != "user" or (role == "user" and turns[-1]["task"] is not None):
            turns.append({"role": "user", "task": None, "blocks": []})
        turn = turns[-1]
        turn["task"] = turn["task"] or task
        place = places.get(str(message.get("tool_call_id")), 0) if role == "tool" else None
        text = f"<tool_result>{message['content']}</tool_result>" if role == "tool" else message["content"]
        turn["blocks"].append((place, text))
    return [turn | {"content": "\n\n".join(_sorted(turn["blocks"]))} if "blocks" in turn else turn for turn in turns]


def _sorted(blocks: list[tuple[int | None, str]]) -> Iterator[str]:
    """The texts: what users said where it stands, results (which have a place) sorted among themselves."""
    results = iter(sorted((block for block in blocks if block[0] is not None), key=lambda block: block[0] or 0))
    return (text if place is None else next(results)[1] for place, text in blocks)
