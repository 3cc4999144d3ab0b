"""When a reply counts as right."""

import pytest

from fourfold.evals.answers import answers, last_number, normalise, states


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Hague.", "hague"),
        ("Côte d'Ivoire", "cote d ivoire"),
        ("Washington, D.C.", "washington d c"),
        ("2,876 m", "2876 m"),
        ("Guinea-Bissau", "guinea bissau"),
        ("-3.50 (or −4)", "-3.50 or -4"),
        ('"small"', "small"),
        ("an apple, a pear; the end", "apple pear end"),
        ("...", ""),
    ],
)
def test_normalise(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Paris", True),
        ("  paris.\nIt is large.", True),
        ("Paris. It is large.", True),
        ("Lutetia!", True),
        ("It is Paris.", False),
        ("Paris or London", False),
        ("London. Paris.", False),
        ("", False),
    ],
)
def test_the_first_line_or_sentence_is_the_answer(reply: str, right: bool) -> None:
    assert answers(reply, ["Paris", "Lutetia", ""]) is right


def test_a_stop_within_a_name_does_not_cut_it() -> None:
    assert answers("St. Louis. It is large.", ["St. Louis"]) and not answers("St. Louis. It is large.", ["Louis"])


@pytest.mark.parametrize(
    ("reply", "entity", "accepted", "right"),
    [
        ("The capital of Sweden is Stockholm.", "Sweden", ["Stockholm"], True),
        ("Stockholm is the capital of Sweden.", "Sweden", ["Stockholm"], True),
        ("It is Oslo.\nOr Stockholm.", "Sweden", ["Stockholm"], False),
        ("An apple tart is a kind of tart.", "an apple tart", ["tart"], True),
        ("An apple tart is a kind of pie.", "an apple tart", ["tart"], False),
        ("The capital of Singapore is Singapore.", "Singapore", ["Singapore"], True),
        ("The capital of Singapore is Oslo.", "Singapore", ["Singapore"], False),
        ("The capital of Mexico is Mexico City.", "Mexico", ["Mexico City"], True),
        ("People pay in Danish kroner.", "Greenland", ["kroner"], True),
        ("People speak Romance.", "Italy", ["Roman"], False),
        ("Paris and the rest.", "France", ["", "the"], False),
    ],
)
def test_the_answer_stands_in_the_first_line_outside_the_entitys_name(
    reply: str, entity: str, accepted: list[str], right: bool
) -> None:
    assert states(reply, accepted, entity) is right


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 * 7 = 42", "42"),
        ("It is 1,234.50.", "1234.5"),
        ("10.0", "10"),
        ("100", "100"),
        ("−7", "-7"),
        ("12, 13", "13"),
        ("none", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number
