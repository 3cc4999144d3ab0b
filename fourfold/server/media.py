"""Pictures, clips and sound in the messages of a request: from the forms that clients send to ours (text/content.py).

    {"type": "image_url", "image_url": {"url": ...}}    also with the address as text; "video_url" likewise      Chat Completions
    {"type": "input_audio", "input_audio": {"data": base64, "format": "wav"}}
    {"type": "input_image", "image_url": ...}   {"type": "input_text", "text": ...}                             Responses
    {"type": "image", "source": {"type": "base64", "data": ...} or {"type": "url", "url": ...}}                 Messages

An address is a data: URL, or one of the web where the setting `fetch` allows it (fetching.py). What the assistant showed is taken
back as what it drew (drawn.py).
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any

from fourfold.errors import MediaError
from fourfold.media.limits import Limits
from fourfold.model.transformer import Transformer
from fourfold.server.drawn import codes_of
from fourfold.server.errors import ApiError, bad
from fourfold.server.fetching import TooLarge, fetch
from fourfold.server.settings import Settings

FETCH_SECONDS = 10.0  # for one file from the web
TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # where each has its words


def limits_of(settings: Settings) -> Limits:
    """How much of a file is taken in."""
    return Limits(bytes=settings.media_bytes)


class Intake:
    """Reads the media of one request, and counts them. Blocks while it fetches: not for the event loop."""

    def __init__(self, settings: Settings, model: Transformer) -> None:
        self.settings, self.model, self.count = settings, model, 0

    def messages(self, messages: Any, field: str = "messages") -> list[dict[str, Any]]:
        """Messages with their content in our form; pictures beside the text of the assistant (`images`) become parts of it.

        Raises ApiError, 400 or 413, that names the part.
        """
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise bad(field, "must be a list of objects with role and content")
        return [self._message(message, f"{field}[{i}]") for i, message in enumerate(messages)]

    def parts(self, content: Any, field: str = "content", role: str = "user") -> Any:
        """A list of parts in our form; text and null as they are. Raises ApiError, 400 or 413, that names the part."""
        if not isinstance(content, list):
            return content
        return [self.part(part, f"{field}[{i}]", role) for i, part in enumerate(content)]

    def _message(self, message: dict[str, Any], field: str) -> dict[str, Any]:
        role = str(message.get("role"))
        made = {name: value for name, value in message.items() if name != "images"}
        if "content" in made:
            made["content"] = self.parts(made["content"], f"{field}.content", role)
        images = message.get("images") or []
        if not isinstance(images, list):
            raise bad(f"{field}.images", "must be a list of parts")
        if images:
            said = made.get("content") or []
            words = [{"type": "text", "text": said}] if isinstance(said, str) else said
            made["content"] = [*words, *self.parts(images, f"{field}.images", role)] if isinstance(words, list) else said
        return made

    def part(self, part: Any, field: str, role: str = "user") -> dict[str, Any]:
        """One part in our form. Raises ApiError, 400 or 413, that names it."""
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in (*TEXTS, *READERS):
            raise bad(f"{field}.type", f"must be one of {', '.join((*TEXTS, *READERS))}")
        if kind in TEXTS:
            if not isinstance(part.get(TEXTS[kind]), str):
                raise bad(f"{field}.{TEXTS[kind]}", "must be text")
            return {"type": "text", "text": part[TEXTS[kind]]}
        self.count += 1
        if self.count > self.settings.media_count:
            raise bad(
                field, f"is one picture, clip or sound more than the {self.settings.media_count} of one request; leave it out"
            )
        shown, read = READERS[kind]
        try:
            raw = read(self, part, field)
            if role == "assistant":
                return codes_of(raw, shown, self.model, limits_of(self.settings))
            return {"type": shown, "source": raw}
        except TooLarge as error:
            raise ApiError(413, f"{field}: {error}", param=field) from error
        except MediaError as error:
            raise bad(field, str(error)) from error

    def _url(self, part: dict[str, Any], field: str) -> bytes:
        """{kind}_url: an object with url, or the address itself."""
        kind = "image_url" if part["type"] == "input_image" else part["type"]
        named = part.get(kind)
        url, field = (named.get("url"), f"{field}.{kind}.url") if isinstance(named, dict) else (named, f"{field}.{kind}")
        return self._address(url, field)

    def _audio(self, part: dict[str, Any], field: str) -> bytes:
        sound = part.get("input_audio")
        if not isinstance(sound, dict):
            raise bad(f"{field}.input_audio", "must be an object with data (base64) and format")
        return self._base64(sound.get("data"), f"{field}.input_audio.data")

    def _source(self, part: dict[str, Any], field: str) -> bytes:
        source = part.get("source")
        kind = source.get("type") if isinstance(source, dict) else None
        if kind == "base64":
            return self._base64(source.get("data"), f"{field}.source.data")
        if kind == "url":
            return self._address(source.get("url"), f"{field}.source.url")
        raise bad(f"{field}.source.type", "must be base64 or url")

    def _address(self, url: Any, field: str) -> bytes:
        if not isinstance(url, str):
            raise bad(field, "must be a data: URL" + " or an http(s) address" * self.settings.fetch)
        if url[:5].lower() == "data:":
            head, _, data = url.partition(",")
            if not head.lower().endswith(";base64"):
                raise bad(field, "is not in base64; send data:TYPE;base64,DATA")
            return self._base64(data, field)
        if not self.settings.fetch:
            raise bad(field, "is no data: URL, and this server fetches nothing (setting `fetch`); send data:TYPE;base64,DATA")
        return fetch(url, self.settings.media_bytes, FETCH_SECONDS)

    def _base64(self, data: Any, field: str) -> bytes:
        """The bytes of a file. Raises TooLarge before anything is decoded."""
        if not isinstance(data, str) or not data:
            raise bad(field, "must be the bytes of a file in base64")
        if len(data) > self.settings.media_bytes * 4 // 3 + 4:
            raise TooLarge(f"has more than {self.settings.media_bytes:,} bytes; send a smaller file")
        try:
            return base64.b64decode(data.rpartition(",")[2] if data.startswith("data:") else data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad(field, "is not base64") from error


# What a part of each type is to the model, and how its bytes are got.
READERS: dict[str, tuple[str, Callable[[Intake, dict[str, Any], str], bytes]]] = {
    "image_url": ("image", Intake._url),
    "video_url": ("video", Intake._url),
    "input_audio": ("audio", Intake._audio),
    "input_image": ("image", Intake._url),
    "image": ("image", Intake._source),
}
