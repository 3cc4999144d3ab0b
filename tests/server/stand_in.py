"""A stand-in for the public API, as the chat page knows it: what it answers depends on the words of the last message."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from fourfold.server.drawn import mp4
from fourfold.server.page import router

USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 21,
    "prompt_cache_hit_tokens": 30,
    "prompt_cache_miss_tokens": 10,
    "completion_tokens_details": {"reasoning_tokens": 5},
    "timing": {"queue_seconds": 0.0, "first_token_seconds": 0.5, "seconds": 2.5},
    "cost": 0.000012,
    "currency": "EUR",
}
MODELS = [
    {"id": "omni", "capabilities": ["image", "audio", "video", "draw", "film", "thinking"]},
    {"id": "omni-reasoner", "capabilities": ["image", "thinking"], "thinking": True},
    {"id": "words", "capabilities": ["tools"]},
    {"id": "elsewhere"},
]
MARKDOWN = """# Title

Some *stress*, **weight**, `code < 1` and snake_case_name, 2 * 3 * 4.
Links: [good](https://example.org/a_(b)), [bad](javascript:alert(1)), https://example.org/x_y.

1. one
   - inner
2. two

```python
print("<b>")
```

<img src=x onerror="window.broken=1"><script>window.broken=1</script> ![out](https://example.org/p.png)
"""


def picture(size: int = 16) -> bytes:
    """A PNG of four colours."""
    image = Image.new("RGB", (2, 2))
    image.putdata([(200, 60, 40), (40, 120, 200), (240, 200, 60), (40, 150, 90)])
    file = io.BytesIO()
    image.resize((size, size), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes, type: str) -> str:
    return f"data:{type};base64,{base64.b64encode(content).decode()}"


CLIP = mp4(torch.arange(8, dtype=torch.uint8).mul(30)[:, None, None, None].expand(8, 3, 24, 32))  # from dark to light


class StandIn:
    """The public API as the page knows it. What it answers depends on the last message's text."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.include_router(router)
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/chat/completions")(self.chat)
        self.reset()

    def reset(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.key: str | None = None
        self.busy = False
        self.left = threading.Event()  # the client went away before the end

    def models(self, request: Request) -> JSONResponse:
        return self.refusal(request) or JSONResponse({"data": MODELS})

    async def chat(self, request: Request) -> Any:
        self.asked.append(body := await request.json())
        content = body["messages"][-1]["content"]
        said = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        return self.refusal(request) or StreamingResponse(self.stream(said), media_type="text/event-stream")

    def refusal(self, request: Request) -> JSONResponse | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no such key; ask for one"}}, 401)
        if self.busy and request.method == "POST":
            return JSONResponse({"error": {"message": "the queue is full"}}, 429, {"Retry-After": "7"})
        return None

    async def stream(self, said: str) -> AsyncIterator[bytes]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if "think" in said:
            deltas += [{"reasoning_content": "First this, "}, {"reasoning_content": "then that."}]
        if "markdown" in said:
            deltas += [{"content": MARKDOWN[at : at + 7]} for at in range(0, len(MARKDOWN), 7)]
        elif "slow" in said:
            deltas += [{"content": f"word{at} "} for at in range(1000)]
        elif "draw" in said:
            url = data_url(picture(), "image/png")
            shown = {"images": [{"type": "image_url", "image_url": {"url": url}}]}
            deltas += [{"content": "Here: "}, {"drawing": {"grid": [8, 8]}}, shown, {"content": "Done."}]
            deltas = deltas[:-2] if "for ever" in said else deltas
        elif "film" in said:
            deltas += [{"images": [{"type": "video_url", "video_url": {"url": data_url(CLIP, "video/mp4")}}]}]
        else:
            deltas += [{"content": "You said "}, {"content": f"“{said}” – ✓ 🙂."}]
        whole = b": keep-alive\r\n\r\n"
        try:
            for delta in deltas:
                event = json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}, ensure_ascii=False)
                whole += f"data: {event}\r\n\r\n".encode()
                if "slow" in said:
                    yield whole
                    whole = b""
                    await asyncio.sleep(0.02)
            if "for ever" in said:
                yield whole
                await asyncio.sleep(60)
            if "broken" in said:
                yield whole + b'data: {"error": {"message": "the model\\n stumbled"}}\n\n'
                return
            ends = [{"choices": [{"index": 0, "delta": {}, "finish_reason": "length" if "long" in said else "stop"}]}]
            ends += [{"choices": [], "usage": USAGE}]
            whole += b"".join(b"data: " + json.dumps(end).encode() + b"\n\n" for end in ends) + b"data: [DONE]\n\n"
            for at in range(0, len(whole), 61):  # events, line ends and letters come in pieces
                yield whole[at : at + 61]
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.left.set()
            raise


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of an app that runs in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
