"""How a server is set up: a TOML file, and the options of `fourfold serve` over it."""

import ipaddress
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fourfold.errors import ConfigError


class Alias(BaseModel):
    """Another name of a model; `thinking` settles whether it thinks, whatever a request says."""

    model_config = ConfigDict(extra="forbid")
    model: str
    thinking: bool | None = None


class Remote(BaseModel):
    """A name that is passed through to another OpenAI-compatible server.

    model: what it is called there (by default the same); key_env: the environment variable that holds the key of that server.
    """

    model_config = ConfigDict(extra="forbid")
    base_url: str = Field(pattern="^https?://")
    model: str | None = None
    key_env: str | None = None
    connect_seconds: float = Field(10.0, gt=0)
    read_seconds: float = Field(300.0, gt=0)


class Settings(BaseModel):
    """Every setting, with its unit in its name. Bytes and counts are upper bounds: what goes beyond is refused, not cut."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    public_without_keys: bool = False  # answer on a public address although there are no keys
    api_keys: list[str] = []  # keys beside those in the ledger, in clear
    cors: list[str] = []  # origins whose pages may call, "*" for all

    # What one request may ask for
    body_bytes: int = Field(48 << 20, gt=0)
    body_seconds: float = Field(30.0, gt=0)  # for a body to arrive, and for the headers before it
    answer_tokens: int = Field(4096, gt=0)  # of an answer where the request does not say
    most_tokens: int | None = Field(None, gt=0)  # of an answer; None: as far as the context reaches
    most_answers: int = Field(128, gt=0)  # prompts x n of one request
    media_count: int = Field(32, ge=0)
    media_bytes: int = Field(32 << 20, gt=0)  # of one file, before it is decoded
    fetch: bool = False  # read pictures from http(s) addresses

    # What the server takes on
    most_running: int = Field(16, gt=0)
    most_waiting: int = Field(64, ge=0)
    connections: int = Field(512, gt=0)
    chunk_tokens: int = Field(512, gt=0)  # of prompts, in one step
    state_bytes: int | None = Field(None, gt=0)  # of running answers, before the newest give way
    drafts: int | None = Field(None, ge=0)
    store_bytes: int = Field(256 << 20, ge=0)  # of the prefix store in memory; 0: no store
    store_disk_bytes: int = Field(2 << 30, ge=0)  # on disk; 0: none
    store_folder: Path | None = None  # by default $FOURFOLD_HOME/prefixes

    keep_alive_seconds: float = Field(10.0, gt=0)  # between comments in a stream that has nothing to say
    write_seconds: float = Field(60.0, gt=0)  # that a client may leave a stream unread
    drain_seconds: float = Field(30.0, ge=0)  # for answers to be finished when the server stops

    ledger: str | None = None  # URL of a database, by default SQLite at $FOURFOLD_HOME/ledger.db
    prices: Path | None = None  # a price table
    aliases: dict[str, Alias] = {}
    upstreams: dict[str, Remote] = {}

    @property
    def is_public(self) -> bool:
        """Whether others than this machine can reach the address."""
        if self.host in ("localhost", ""):
            return self.host == ""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True


def read_settings(file: Path | None, **over: Any) -> Settings:
    """Settings from a TOML file, with those in `over` that are not None put over them. Raises ConfigError naming the field."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read as TOML ({str(error).splitlines()[0]}); put it right") from error
    values |= {name: value for name, value in over.items() if value is not None}
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{name}: {first['msg'].lower()}; see the settings in fourfold/server/settings.py") from None
