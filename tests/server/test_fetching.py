"""Files from the web: only from public addresses, whatever a name or a redirect says, and within bounds of bytes and time."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from fourfold.errors import MediaError
from fourfold.server import fetching
from fourfold.server.fetching import TooLarge, fetch, is_public, resolved

PUBLIC = "93.184.216.34"
INSIDE = """
127.0.0.1 127.8.9.1 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 192.0.0.1
192.0.2.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 ::1 :: fe80::1 fc00::1
fd12:3456::1 fec0::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe
2002:7f00:1:: 2002:a00:1:: 2001:db8::1 2001::1 100::1 fd00:ec2::254
""".split()
OUTSIDE = "93.184.216.34 8.8.8.8 172.32.0.1 2606:4700::1111 ::ffff:8.8.8.8 2002:808:808::1".split()


@pytest.mark.parametrize("address", INSIDE)
def test_what_is_inside(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_what_is_outside(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]"])
def test_every_way_to_write_this_machine_is_refused(host: str) -> None:
    with (
        served(b"HTTP/1.0 200 OK\r\n\r\nsecret") as (port, asked),
        pytest.raises(MediaError, match="public address|cannot be fetched"),
    ):
        fetch(f"http://{host}:{port}/", 100, 5)
    assert not asked


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.com/x", "gopher://x", "http://", "//example.com", "", "http://[::1", "x"]
)
def test_only_http(url: str) -> None:
    with pytest.raises(MediaError):
        fetch(url, 100, 5)


def test_one_address_inside_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"mixed.test": [PUBLIC, "10.0.0.7"]}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [(0, 0, 0, "", (a, port)) for a in names[host]])
    with pytest.raises(MediaError, match="does not lead to a public address"):
        resolved("mixed.test", 80)


class Web:
    """Names and servers of a make-believe web: every connection to PUBLIC ends at one of our own."""

    def __init__(self, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stack, self.names, self.ports = stack, dict[str, list[list[str]]](), dict[int, int]()
        self.dialled: list[str] = []

        def connect(address: tuple[str, int], timeout: float | None = None) -> socket.socket:
            self.dialled.append(address[0])
            assert is_public(address[0]), "a connection to the inside"
            line = Disguised(address[0])
            line.settimeout(timeout)
            line.connect(("127.0.0.1", self.ports[address[1]]))
            return line

        def look_up(host: str, port: int, **_: object) -> list:
            answers = self.names.get(host, [[host]])
            return [(0, 0, 0, "", (address, port)) for address in (answers.pop(0) if len(answers) > 1 else answers[0])]

        monkeypatch.setattr(fetching.socket, "create_connection", connect)
        monkeypatch.setattr(fetching.socket, "getaddrinfo", look_up)

    def serve(
        self, name: str, answer: bytes | Callable[[socket.socket], None], *addresses: list[str], port: int = 80
    ) -> list[bytes]:
        self.names[name] = list(addresses) or [[PUBLIC]]
        real, asked = self.stack.enter_context(served(answer))
        self.ports[port] = real
        return asked


class Disguised(socket.socket):
    """A connection to this machine that says it is one to elsewhere."""

    def __init__(self, peer: str) -> None:
        super().__init__()
        self.peer = peer

    def getpeername(self) -> tuple[str, int]:
        return self.peer, 80


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with ExitStack() as stack:
        yield Web(stack, monkeypatch)


def test_a_public_file_is_fetched(web: Web) -> None:
    asked = web.serve("pictures.test", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes")
    assert fetch("http://pictures.test/a b.png?x=ä#part", 5, 5) == b"bytes"
    assert asked[0].startswith(b"GET /a%20b.png?x=%C3%A4 HTTP/1.1\r\nHost: pictures.test\r\n")
    assert not {b"authorization", b"cookie", b"proxy"} & {line.partition(b":")[0].lower() for line in asked[0].split(b"\r\n")}


def test_the_address_looked_at_is_the_one_connected_to(web: Web) -> None:
    """A name that leads outside at first and inside afterwards."""
    web.serve("rebinding.test", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", [PUBLIC], ["127.0.0.1"])
    assert fetch("http://rebinding.test/", 10, 5) == b"ok"
    assert web.dialled == [PUBLIC]
    with pytest.raises(MediaError, match="does not lead to a public address"):
        fetch("http://rebinding.test/", 10, 5)
    assert web.dialled == [PUBLIC]


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://inside.test/", "file:///etc/passwd"],
)
def test_redirects_are_looked_at_again(web: Web, target: str) -> None:
    asked = web.serve("moved.test", f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode())
    web.names["inside.test"] = [["10.0.0.1"]]
    with pytest.raises(MediaError, match="address"):
        fetch("http://moved.test/", 100, 5)
    assert len(asked) == 1 and web.dialled == [PUBLIC]


def test_a_public_address_of_this_machine_is_inside_too(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disguised, "getpeername", socket.socket.getsockname)
    web.serve("myself.test", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    with pytest.raises(MediaError, match="does not lead to a public address"):
        fetch("http://myself.test/", 10, 5)


def test_redirects_end(web: Web) -> None:
    asked = web.serve("loop.test", b"HTTP/1.1 301 Moved\r\nLocation: /again\r\n\r\n")
    with pytest.raises(MediaError, match="redirected more than 3 times"):
        fetch("http://loop.test/", 100, 5)
    assert len(asked) == 4


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b"x" * 11,
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n" + b"x" * 11,
        b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 11,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + b"x" * 11 + b"\r\n0\r\n\r\n",
    ],
)
def test_too_many_bytes(web: Web, answer: bytes) -> None:
    web.serve("large.test", answer)
    with pytest.raises(TooLarge, match="more than 10 bytes"):
        fetch("http://large.test/", 10, 5)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"nonsense",
        b"",
        b"HTTP/1.1 304 Same\r\n\r\n",
    ],
)
def test_answers_that_are_no_file(web: Web, answer: bytes) -> None:
    web.serve("broken.test", answer)
    with pytest.raises(MediaError, match=r"^[^\n]+; send the file itself as a data: URL$"):
        fetch("http://broken.test/", 100, 5)


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_drips_is_given_up(web: Web, first: bytes) -> None:
    """A byte now and then keeps no thread for longer than allowed: neither in headers nor in the body."""
    over = threading.Event()

    def drip(line: socket.socket) -> None:
        line.sendall(first)
        while not over.wait(0.02):
            line.sendall(b"x")

    web.serve("slow.test", drip)
    with pytest.raises(MediaError, match="took more than 0.2 s"):
        fetch("http://slow.test/", 10_000_000, 0.2)
    over.set()


@contextmanager
def served(answer: bytes | Callable[[socket.socket], None]) -> Iterator[tuple[int, list[bytes]]]:
    """A server on this machine that gives one answer to everybody; its port, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                with line:
                    asked.append(line.recv(65536))
                    with suppress(OSError):
                        answer(line) if callable(answer) else line.sendall(answer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
