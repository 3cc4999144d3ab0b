"""A file from the web, fetched because a client named its address: only ever from public addresses.

The address that is looked at is the one that is connected to, so a name cannot point elsewhere in between; redirects are followed
here, and looked at again. Nothing of the environment (proxies, cookies, passwords) goes along.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv6Address, IPv6Network, ip_address
from urllib.parse import quote, urljoin, urlsplit

from fourfold.errors import MediaError

MOST_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
UNICAST = IPv6Network("2000::/3")  # all that is given out; what else looks global leads to IPv4 or to ourselves
HEADERS = {"User-Agent": "fourfold", "Accept": "image/*,video/*,audio/*", "Accept-Encoding": "identity", "Connection": "close"}
REMEDY = "send the file itself as a data: URL"
NOT_PUBLIC = f"does not lead to a public address; {REMEDY}"


class TooLarge(MediaError):
    """A file of more bytes than are taken."""


def fetch(url: str, most: int, seconds: float) -> bytes:
    """What an http or https address holds: at most `most` bytes, within so many seconds for all of it (names not counted).

    Raises MediaError: no such address, not public, no answer, an answer other than 200, cut short, or too slow; TooLarge.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MOST_REDIRECTS + 1):
        try:
            with _asked(url, deadline) as answer:
                if answer.status not in REDIRECTS:
                    return _body(answer, most, deadline)
                url = urljoin(url, answer.getheader("Location", ""))
        except (OSError, HTTPException, ValueError) as error:
            late = time.monotonic() >= deadline
            raise MediaError(f"took more than {seconds:g} s; {REMEDY}" if late else f"cannot be fetched; {REMEDY}") from error
    raise MediaError(f"is redirected more than {MOST_REDIRECTS} times; {REMEDY}")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, shared, reserved or multicast."""
    found = ip_address(address)
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped:
            return is_public(str(found.ipv4_mapped))
        inner = found.sixtofour or (found.teredo and found.teredo[1])
        return found in UNICAST and found.is_global and (inner is None or is_public(str(inner)))
    return found.is_global and not found.is_multicast


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises MediaError unless every one is public, OSError where there are none."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(is_public(address) for address in found):
        raise MediaError(NOT_PUBLIC)
    return found


class _Link(HTTPConnection):
    """A connection that is only made to a public address, and dropped at a deadline."""

    def __init__(self, host: str, port: int, secure: bool, deadline: float) -> None:
        left = max(deadline - time.monotonic(), 0.001)
        super().__init__(host, port, timeout=left)
        self.secure, self.line, self.timer = secure, socket.socket(), threading.Timer(left, self.drop)
        self.timer.daemon = True

    def connect(self) -> None:
        address = resolved(self.host, self.port)[0]
        self.line = socket.create_connection((address, self.port), self.timeout)
        self.timer.start()
        if self.line.getsockname()[0] == self.line.getpeername()[0]:  # a public address of this machine
            raise MediaError(NOT_PUBLIC)
        if self.secure:
            self.line = _trust().wrap_socket(self.line, server_hostname=self.host, do_handshake_on_connect=False)
            self.line.do_handshake()
        self.sock = self.line

    def drop(self) -> None:
        """Make whoever reads wake up, with nothing more to come. Of TLS too, whose own shutdown is not for another thread."""
        with suppress(OSError):
            socket.socket.shutdown(self.line, socket.SHUT_RDWR)

    def end(self) -> None:
        self.timer.cancel()
        self.close()
        self.line.close()


@contextmanager
def _asked(url: str, deadline: float) -> Iterator[HTTPResponse]:
    """The answer to a GET, its body still to come. Raises what `fetch` turns into MediaError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise MediaError(f"leads to no http or https address; {REMEDY}")
    secure = parts.scheme == "https"
    target = quote(f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}", safe="/?%&=:;@!$'()*+,~[]")
    link = _Link(parts.hostname, parts.port or (443 if secure else 80), secure, deadline)
    try:
        link.request("GET", target, headers=HEADERS)
        yield link.getresponse()
    finally:
        link.end()


def _body(answer: HTTPResponse, most: int, deadline: float) -> bytes:
    if answer.status != 200:
        raise MediaError(f"was answered with status {answer.status}; {REMEDY}")
    promised = answer.length
    body = b"" if (promised or 0) > most else answer.read(most + 1)
    if max(promised or 0, len(body)) > most:
        raise TooLarge(f"has more than {most:,} bytes; send a smaller file")
    if len(body) < (promised or 0) or time.monotonic() >= deadline:
        raise OSError("the answer was cut short")
    return body


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()
