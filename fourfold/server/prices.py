"""What tokens cost: per million of a model, cached, fresh and output, and more at peak hours where the table says so.

    currency = "USD"

    [peak]
    zone = "Asia/Shanghai"
    weekdays = ["mon", "tue", "wed", "thu", "fri"]
    hours = ["09:00-12:00", "14:00-18:00"]

    [models."*"]                                      # every model without a table of its own
    cached = 0.003
    fresh = 0.15
    output = 0.6
    peak = { cached = 0.006, fresh = 0.30, output = 1.2 }

Prices are exact decimals. What an answer costs is kept in whole nano-units (1e-9 of the currency), each part rounded once, half to
even, and the total is the sum of the parts.
"""

import hashlib
import json
import tomllib
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fourfold.errors import ConfigError, FourfoldError
from fourfold.parts import one_line

NANO = 10**9
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DEFAULT = "*"  # the model whose prices hold for those that have none of their own

# Exact in nano-units over any sum that is kept in 64 bits: at most 12 decimal places, and less than a million.
Amount = Annotated[Decimal, Field(ge=0, lt=10**6, decimal_places=12, allow_inf_nan=False)]


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rates(_Fields):
    """Price of a million tokens: of a prompt's that the prefix store gave, of its other ones, and of the answer's."""

    cached: Amount
    fresh: Amount
    output: Amount


class ModelRates(Rates):
    """The rates of a model; `peak` holds in peak hours."""

    peak: Rates | None = None


class Peak(_Fields):
    """Peak hours, by the clock on the wall in a time zone: minutes of the day from (inclusive) and to (exclusive)."""

    zone: str
    weekdays: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4, 5, 6), min_length=1)
    hours: tuple[tuple[int, int], ...] = Field(min_length=1)

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        if zone not in available_timezones():
            raise ValueError(f"peak.zone: {zone!r} is no IANA time zone; write one such as Asia/Shanghai")
        return zone

    @field_validator("weekdays", mode="before")
    @classmethod
    def _numbered(cls, days: Any) -> Any:
        if not isinstance(days, list | tuple) or any(day not in WEEKDAYS for day in days):
            raise ValueError(f"peak.weekdays: {days!r} is not a list of {', '.join(WEEKDAYS)}")
        return tuple(sorted({WEEKDAYS.index(day) for day in days}))

    @field_validator("hours", mode="before")
    @classmethod
    def _in_minutes(cls, hours: Any) -> Any:
        if not isinstance(hours, list | tuple):
            raise ValueError(f'peak.hours: {hours!r} is no list; write one such as ["09:00-12:00"]')
        return tuple(_interval(each) for each in hours)

    def holds(self, at: datetime) -> bool:
        """Whether a moment (with a time zone) is in peak hours."""
        there = at.astimezone(ZoneInfo(self.zone))
        minute = 60 * there.hour + there.minute
        return there.weekday() in self.weekdays and any(start <= minute < end for start, end in self.hours)


@dataclass(frozen=True)
class Cost:
    """What an answer costs, in nano-units: its parts, the currency, the version of the table, and whether it was peak time."""

    cached: int
    fresh: int
    output: int
    currency: str
    version: str
    peak: bool

    @property
    def total(self) -> int:
        return self.cached + self.fresh + self.output

    @property
    def amount(self) -> Decimal:
        """The total in whole units of the currency, exactly."""
        return units(self.total)


class PriceTable(_Fields):
    """Prices of all models. `version` names the table in the ledger: given, or the beginning of a digest of what it says."""

    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    version: str = Field(default="", max_length=64)
    peak: Peak | None = None
    models: dict[str, ModelRates] = Field(min_length=1)

    def model_post_init(self, context: Any) -> None:
        if DEFAULT not in self.models:
            raise ValueError('models: prices for "*" are missing; add [models."*"], which holds for every model without its own')
        if priced := [name for name, rates in self.models.items() if rates.peak and not self.peak]:
            raise ValueError(f"peak: models.{priced[0]} has peak prices, but no hours are given; add [peak] with zone and hours")
        if not self.version:
            said = self.model_dump_json(exclude={"version"}).encode()
            object.__setattr__(self, "version", hashlib.sha256(said).hexdigest()[:12])

    @classmethod
    def free(cls) -> Self:
        """Every model for nothing."""
        return cls(version="free", models={DEFAULT: ModelRates(cached=Decimal(0), fresh=Decimal(0), output=Decimal(0))})

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read a table from a TOML or JSON file; without one all is free. Raises ConfigError naming file and field."""
        if path is None:
            return cls.free()
        try:
            return cls.model_validate(_read(path))
        except ValidationError as error:
            raise ConfigError(f"{path}: {one_line(error)}") from None

    def rates(self, model: str, at: datetime) -> tuple[Rates, bool]:
        """The rates of a model at a moment (with a time zone), and whether they are those of peak hours."""
        rates = self.models.get(model) or self.models[DEFAULT]
        if rates.peak and self.peak and self.peak.holds(at):
            return rates.peak, True
        return rates, False

    def cost(self, model: str, hit: int, miss: int, output: int, at: datetime) -> Cost:
        """What an answer costs: prompt tokens found in the prefix store and not, and tokens made, at the prices of a moment."""
        rates, peak = self.rates(model, at)
        parts = nano(rates.cached, hit), nano(rates.fresh, miss), nano(rates.output, output)
        return Cost(*parts, self.currency, self.version, peak)


def nano(price: Decimal, tokens: int) -> int:
    """Nano-units for a number of tokens at a price per million, rounded half to even."""
    digits, exponent = int(price.scaleb(12)), 12 + 6 - 9  # in integers throughout: a Decimal product is rounded to 28 digits
    whole, rest = divmod(digits * tokens, 10**exponent)
    return whole + (2 * rest > 10**exponent or (2 * rest == 10**exponent and whole % 2))


def amount_of(text: str, field: str) -> int:
    """An amount in whole units, as people write it, in nano-units. Raises FourfoldError naming the field."""
    try:
        amount = Decimal(text).scaleb(9)
        if abs(amount) < 10**6 * NANO and amount == amount.to_integral_value():
            return int(amount)
    except InvalidOperation:
        pass
    raise FourfoldError(f"{field}: {text} is no amount; write one such as 12.50, below a million, of at most 9 decimal places")


def units(amount: int) -> Decimal:
    """Nano-units to whole units, exactly."""
    return Decimal(amount).scaleb(-9)


def money(amount: int, least: int = 2) -> str:
    """Nano-units as text in whole units: all decimal places that are not 0, and at least `least`."""
    sign, (whole, rest) = "-" if amount < 0 else "", divmod(abs(amount), NANO)
    return f"{sign}{whole}.{f'{rest:09d}'.rstrip('0').ljust(least, '0')}"


def _interval(text: Any) -> tuple[int, int]:
    """ "09:00-12:00" as minutes of the day; an end of 24:00 is midnight."""
    try:
        (h, m), (hh, mm) = ([int(part) for part in end.split(":")] for end in text.split("-"))
        start, end = 60 * h + m, 60 * hh + mm
        if 0 <= start < end <= 24 * 60 and m < 60 and mm < 60:
            return start, end
    except (AttributeError, ValueError):
        pass
    raise ValueError(f'peak.hours: {text!r} is no time of day; write "09:00-12:00", and split what goes past midnight at 24:00')


def _read(path: Path) -> dict[str, Any]:
    """A table as it is written, its numbers as exact decimals."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            values = json.loads(text, parse_float=Decimal)
        else:
            values = tomllib.loads(text, parse_float=Decimal)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a TOML or JSON file of prices") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is neither TOML nor, as .json, JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no table of fields; write currency and models")
    return values
