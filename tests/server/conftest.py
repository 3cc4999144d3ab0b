"""Servers to talk to: a small model behind uvicorn in a thread, on the real engine, or on one that says what a test wants said."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import httpx
import openai
import pytest

from fourfold.engine.engine import Engine
from fourfold.engine.request import Chosen, EngineBusy, Piece, Request, Stats, Usage
from fourfold.engine.stops import StopStrings
from fourfold.engine.stream import Stream
from fourfold.model.transformer import Transformer
from fourfold.presets import preset
from fourfold.server.app import create_app
from fourfold.server.ledger import Ledger
from fourfold.server.models import Models, Serving, serve
from fourfold.server.opening import Server
from fourfold.server.settings import Settings
from fourfold.text.tokenizer import StreamDecoder, Tokenizer
from tests.omni import make_omni

Say = Callable[[Request], str]


class Scripted:
    """Stands in for an engine: says `say(request)`, a token a step, control tokens by name. `steps`: only as these are released."""

    def __init__(self, model: Transformer, say: Say | str, most_waiting: int = 64) -> None:
        self.model, self.say, self.most_waiting = model, say, most_waiting
        self.steps: threading.Semaphore | None = None
        self.asked: list[Request] = []
        self.cancelled = 0
        self.running = 0

    def submit(self, request: Request) -> Stream:
        if self.running >= self.most_waiting:
            raise EngineBusy(self.running, 3.2)
        self.asked.append(request)
        self.running += 1
        stream = Stream(Usage(len(request.prompt)))
        threading.Thread(target=self._run, args=(request, stream), daemon=True).start()
        return stream

    def stats(self) -> Stats:
        return Stats(running=self.running)

    def close(self, drain: bool = True) -> None:
        if self.steps is not None:
            self.steps.release(10_000)

    def _run(self, request: Request, stream: Stream) -> None:
        try:
            for piece in self._pieces(request, stream):
                stream.put(piece)
        except Exception as error:
            stream.put(error)
        finally:
            self.running -= 1

    def _pieces(self, request: Request, stream: Stream) -> Iterator[Piece]:
        tokenizer: Tokenizer = self.model.tokenizer
        said = self.say if isinstance(self.say, str) else self.say(request)
        ids = [*spelled(tokenizer, said), tokenizer.special("end")][: request.sampling.max_tokens]
        decoder, stops, reason = StreamDecoder(tokenizer), StopStrings(request.sampling.stop), None
        for place, id in enumerate(ids):
            if self.steps is not None:
                self.steps.acquire()
            if stream.cancelled:
                self.cancelled += 1
                yield Piece("", (), "cancelled")
                return
            text, stopped = stops.add(decoder.push(id))
            reason = "stop" if stopped or id in tokenizer.ends else "length" if place == len(ids) - 1 else None
            stream.usage.completion_tokens += 1
            chosen = (Chosen(id, -0.5, ((id, -0.5),)),) if request.logprobs is not None else ()
            yield Piece(text + (stops.flush() if reason else ""), (id,), reason, logprobs=chosen)
            if reason:
                return


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which the names of control tokens stand for these."""
    pattern = "|".join(map(re.escape, sorted(tokenizer.controls, key=len, reverse=True)))
    pieces = re.split(f"({pattern})", text)
    return [id for i, piece in enumerate(pieces) for id in ([tokenizer.special(piece)] if i % 2 else tokenizer.encode(piece))]


@dataclass
class Live:
    """A running server."""

    url: str
    serving: Serving
    server: Server
    client: openai.OpenAI = field(init=False)
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.http.post(path, json=body)

    @property
    def engine(self) -> Scripted:
        return self.serving.models.own()[0].engine  # type: ignore[return-value]


@contextmanager
def running(models: Models, settings: Settings, ledger: Ledger | None = None) -> Iterator[Live]:
    """A server in a thread, stopped at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # little is held for a client that does not read
    app = create_app(models, settings, ledger)
    server = Server(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive(), "the server did not start"
    live = Live(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.serving, server)
    try:
        yield live
    finally:
        live.http.close()
        live.client.close()
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def speaker(tokenizer: Tokenizer) -> Transformer:
    """All parts of the architecture with random weights, a tokenizer and 512 tokens of context; not to be changed."""
    classes, count = tokenizer.compression()
    config = preset("debug").but(vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    config = config.but(memory=config.memory.but(engram_compressed_vocab_size=count), initializer_range=0.1)
    model = Transformer(config, classes).init_weights(7).eval()
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="session")
def live(speaker: Transformer) -> Iterator[Live]:
    """The small model on the real engine, without a ledger."""
    settings = Settings(most_running=4, most_waiting=16, drain_seconds=1)
    models = Models([serve(speaker, "tiny", Engine(speaker, most_running=4, most_waiting=16))], settings)
    with running(models, settings) as it:
        yield it


@pytest.fixture(scope="session")
def omni(tokenizer: Tokenizer) -> Transformer:
    """Reads and draws; random weights; not to be changed."""
    return make_omni(tokenizer)


@pytest.fixture(scope="session")
def painter(omni: Transformer) -> Iterator[Live]:
    """A model that reads and draws, on the real engine, without a ledger."""
    settings = Settings(most_running=4, most_waiting=16, drain_seconds=1, answer_tokens=8)
    models = Models([serve(omni, "omni", Engine(omni, most_running=4, most_waiting=16))], settings)
    with running(models, settings) as it:
        yield it


@pytest.fixture
def saying(speaker: Transformer) -> Iterator[Callable[..., Live]]:
    """Starts servers that say what they are told: `saying("text", **settings)`."""
    with ExitStack() as stack:

        def start(say: Say | str = "Hello.", ledger: Ledger | None = None, **settings: object) -> Live:
            given = Settings(**{"drain_seconds": 1, **settings})
            models = Models([serve(speaker, "tiny", Scripted(speaker, say, given.most_waiting))], given)
            return stack.enter_context(running(models, given, ledger))

        yield start
