"""Prices: peak hours to the minute in every time zone, exact sums, one rounding a part, and tables that say what is wrong."""

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fourfold.errors import ConfigError, FourfoldError
from fourfold.server.prices import Peak, PriceTable, amount_of, money, nano, units

PUBLISHED = """
currency = "USD"
[peak]
zone = "Asia/Shanghai"
weekdays = ["mon", "tue", "wed", "thu", "fri"]
hours = ["09:00-12:00", "14:00-18:00"]
[models."*"]
cached = 0.003
fresh = 0.15
output = 0.6
peak = { cached = 0.006, fresh = 0.30, output = 1.2 }
[models.pro]
cached = 0.022
fresh = 0.66
output = 1.98
"""
PLAIN = '[models."*"]\ncached = 1\nfresh = 1\noutput = 1\n'
prices = some.decimals(0, Decimal("999999.999999999999"), places=12)
tokens = some.integers(0, 10**9)


def table(tmp_path: Path, text: str, name: str = "prices.toml") -> PriceTable:
    (tmp_path / name).write_text(text, "utf-8")
    return PriceTable.load(tmp_path / name)


@pytest.mark.parametrize(
    ("beijing", "peak"),
    [
        ("2026-11-23 08:59:59.999999", False),
        ("2026-11-23 09:00:00", True),
        ("2026-11-23 11:59:59.999999", True),
        ("2026-11-23 12:00:00", False),
        ("2026-11-23 13:59:59", False),
        ("2026-11-23 14:00:00", True),
        ("2026-11-27 17:59:59.999999", True),
        ("2026-11-27 18:00:00", False),
        ("2026-11-28 10:00:00", False),  # a Saturday
        ("2026-11-29 15:00:00", False),
    ],
)
def test_the_published_peak_hours(tmp_path: Path, beijing: str, peak: bool) -> None:
    at = datetime.fromisoformat(f"{beijing}+08:00").astimezone(UTC)
    cost = table(tmp_path, PUBLISHED).cost("flash", 10**6, 10**6, 10**6, at)
    assert cost.peak is peak
    assert cost.amount == (Decimal("1.506") if peak else Decimal("0.753"))


@pytest.mark.parametrize(
    ("moment", "peak"),
    [
        ("2026-11-22T15:59:59", False),  # still Sunday in Shanghai
        ("2026-11-22T16:00:00", True),
        ("2026-11-23T15:59:59", True),
        ("2026-11-23T16:00:00", False),
    ],
)
def test_the_weekday_is_that_of_the_zone(moment: str, peak: bool) -> None:
    monday = Peak.model_validate({"zone": "Asia/Shanghai", "weekdays": ["mon"], "hours": ["00:00-24:00"]})
    assert monday.holds(datetime.fromisoformat(f"{moment}+00:00")) is peak


@pytest.mark.parametrize(
    ("zone", "hours", "moment", "peak"),
    [
        # 9 o'clock on the wall is 7 in summer and 8 in winter
        ("Europe/Berlin", "09:00-10:00", "2026-07-01T07:00", True),
        ("Europe/Berlin", "09:00-10:00", "2026-07-01T08:00", False),
        ("Europe/Berlin", "09:00-10:00", "2026-12-01T07:59", False),
        ("Europe/Berlin", "09:00-10:00", "2026-12-01T08:00", True),
        # the hour that is left out in spring never comes
        ("Europe/Berlin", "02:00-03:00", "2026-03-29T00:59", False),
        ("Europe/Berlin", "02:00-03:00", "2026-03-29T01:00", False),
        # the one that comes twice in autumn counts twice
        ("Europe/Berlin", "02:00-03:00", "2026-10-24T23:59", False),
        ("Europe/Berlin", "02:00-03:00", "2026-10-25T00:00", True),
        ("Europe/Berlin", "02:00-03:00", "2026-10-25T01:59", True),
        ("Europe/Berlin", "02:00-03:00", "2026-10-25T02:00", False),
        # a zone that is shifted by half an hour, and one by three quarters
        ("Australia/Lord_Howe", "01:30-02:00", "2026-04-04T14:45", True),
        ("Asia/Kathmandu", "09:00-10:00", "2026-04-04T03:15", True),
        ("Asia/Kathmandu", "09:00-10:00", "2026-04-04T03:14", False),
    ],
)
def test_peak_hours_are_those_of_the_clock_on_the_wall(zone: str, hours: str, moment: str, peak: bool) -> None:
    assert Peak.model_validate({"zone": zone, "hours": [hours]}).holds(datetime.fromisoformat(f"{moment}+00:00")) is peak


def test_a_model_has_its_own_prices_or_those_of_all(tmp_path: Path) -> None:
    prices, at = table(tmp_path, PUBLISHED), datetime(2026, 11, 23, 2, tzinfo=UTC)
    assert prices.cost("pro", 0, 10**6, 0, at).amount == Decimal("0.66")  # no peak prices, so the same at all hours
    assert not prices.cost("pro", 0, 1, 0, at).peak
    assert prices.cost("anything", 0, 10**6, 0, at).amount == Decimal("0.30")
    assert PriceTable.free().cost("pro", 10**9, 10**9, 10**9, at).total == 0


@given(prices, tokens)
def test_a_part_is_rounded_once_half_to_even(price: Decimal, count: int) -> None:
    exact = Fraction(price) * count * 10**9 / 10**6
    assert nano(price, count) == round(exact)  # Python rounds fractions half to even


@pytest.mark.parametrize(("price", "count", "rounded"), [("0.0005", 1, 0), ("0.0015", 1, 2), ("0.0025", 1, 2), ("0.0035", 1, 4)])
def test_halves(price: str, count: int, rounded: int) -> None:
    assert nano(Decimal(price), count) == rounded


@given(prices, prices, prices, tokens, tokens, tokens)
def test_the_parts_add_up(cached: Decimal, fresh: Decimal, output: Decimal, hit: int, miss: int, made: int) -> None:
    rates = {"cached": cached, "fresh": fresh, "output": output}
    cost = PriceTable.model_validate({"models": {"*": rates}}).cost("m", hit, miss, made, datetime.now(UTC))
    exact = (Fraction(cached) * hit + Fraction(fresh) * miss + Fraction(output) * made) * 1000
    assert cost.cached + cost.fresh + cost.output == cost.total
    assert abs(cost.total - exact) <= Fraction(3, 2)
    assert cost.amount == units(cost.total) and int(cost.amount.scaleb(9)) == cost.total


@given(some.integers(1 - 10**15, 10**15 - 1))
def test_money_is_read_as_it_is_written(amount: int) -> None:
    assert amount_of(money(amount), "AMOUNT") == amount


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0.00"), (1, "0.000000001"), (-1_500_000_000, "-1.50"), (12_345_678_900, "12.3456789")]
)
def test_money_as_text(amount: int, text: str) -> None:
    assert money(amount) == text


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1e9", "0.0000000001", "1,5"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(FourfoldError, match="^AMOUNT: "):
        amount_of(text, "AMOUNT")


def test_a_version_names_what_a_table_says(tmp_path: Path) -> None:
    first = table(tmp_path, PLAIN)
    assert len(first.version) == 12 and first.version == table(tmp_path, f"# a remark\n{PLAIN}").version
    assert first.version != table(tmp_path, PLAIN.replace("output = 1", "output = 1.000000000001")).version
    assert table(tmp_path, f'version = "autumn"\n{PLAIN}').version == "autumn"
    same = '{"models": {"*": {"cached": 1, "fresh": 1, "output": 1}}}'
    assert first.version == table(tmp_path, same, "prices.json").version


def test_numbers_are_exact(tmp_path: Path) -> None:
    json = '{"models": {"*": {"cached": 0.1, "fresh": 0.003625, "output": 999999.999999999999}}}'
    rates = table(tmp_path, json, "prices.json").models["*"]
    assert [str(rates.cached), str(rates.fresh), str(rates.output)] == ["0.1", "0.003625", "999999.999999999999"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "models is missing"),
        ("models = 3", "models is 3"),
        ("currency = 'usd'\n" + PLAIN, "currency"),
        ("colour = 1\n" + PLAIN, "colour is not a known field"),
        (PLAIN.replace("*", "m"), r'prices for "\*" are missing'),
        (PLAIN.replace("cached = 1", "cached = -1"), r"models\.\*\.cached"),
        (PLAIN.replace("cached = 1", "cached = nan"), r"models\.\*\.cached"),
        (PLAIN.replace("fresh = 1", "fresh = true"), r"models\.\*\.fresh"),
        (PLAIN.replace("output = 1", "output = 1000000"), r"models\.\*\.output"),
        (PLAIN.replace("output = 1", "output = 1.0000000000001"), r"models\.\*\.output"),
        (PLAIN.replace("output = 1", ""), r"models\.\*\.output is missing"),
        (PLAIN + "peak = {cached = 1, fresh = 1, output = 1}", r"add \[peak\]"),
        (PLAIN + "[peak]\nzone = 'Mars/Olympus'\nhours = ['09:00-12:00']", r"peak\.zone"),
        (PLAIN + "[peak]\nzone = 'UTC'\nhours = ['22:00-02:00']", r"peak\.hours.*24:00"),
        (PLAIN + "[peak]\nzone = 'UTC'\nhours = ['09:60-12:00']", r"peak\.hours"),
        (PLAIN + "[peak]\nzone = 'UTC'\nhours = ['9']", r"peak\.hours"),
        (PLAIN + "[peak]\nzone = 'UTC'\nhours = [9]", r"peak\.hours"),
        (PLAIN + "[peak]\nzone = 'UTC'\nhours = []", r"peak\.hours"),
        (PLAIN + "[peak]\nzone = 'UTC'\nweekdays = ['Monday']\nhours = ['09:00-12:00']", r"peak\.weekdays"),
        (PLAIN + "[peak]\nzone = 'UTC'\nweekdays = [['mon']]\nhours = ['09:00-12:00']", r"peak\.weekdays"),
        ("[models", "neither TOML nor"),
    ],
)
def test_a_table_that_is_wrong_names_the_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        table(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "prices.toml")) and "\n" not in str(error.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        PriceTable.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="no table"):
        table(tmp_path, "[]", "prices.json")
