"""Constraints: what a model that knows nothing says under one is of the form asked for, in any vocabulary; errors say where."""

import json
import re
import threading
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import Tokenizer as Inner
from tokenizers import models, normalizers

from fourfold.engine.constraint import Constraint
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.engine.schema import check_schema
from fourfold.errors import ConfigError, FourfoldError
from fourfold.text.tokenizer import Tokenizer
from tests.engine.constrained import ramble
from tests.engine.serving import served, words
from tests.text.test_chats import a_tokenizer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
keys = some.sampled_from(["a", "b", "name", "größe", 'q"\\'])
leaves = some.one_of(
    some.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string"}, {"type": "number"}, {"$ref": "#/$defs/small"}]),
    some.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, some.integers(-9, 9), some.integers(0, 9)
    ),
    some.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, some.integers(0, 3), some.integers(0, 3)
    ),
    some.builds(lambda values: {"enum": values}, some.lists(some.sampled_from(["x", "ü", 1, None, True]), min_size=1, max_size=3)),
    some.sampled_from([{"type": "string", "pattern": "^[a-c]+$"}, {"type": "string", "format": "ipv4"}, {"const": {"k": [1]}}]),
)


def _object(properties: dict[str, Any], left_out: int) -> dict[str, Any]:
    names = list(properties)
    return {"type": "object", "properties": properties, "required": names[left_out:], "additionalProperties": False}


schemas = some.recursive(
    leaves,
    lambda inner: some.one_of(
        some.builds(_object, some.dictionaries(keys, inner, max_size=3), some.integers(0, 2)),
        some.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, some.integers(0, 3)),
        some.builds(lambda options: {"anyOf": options}, some.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=4,
)


@settings(max_examples=20)
@given(schemas, some.integers(0, 99))
def test_json_of_a_random_schema_is_valid(tokenizer: Tokenizer, schema: dict[str, Any], seed: int) -> None:
    schema = schema | {"$defs": {"small": {"type": "integer", "minimum": 0, "maximum": 3}}}
    said = tokenizer.decode(ramble(Constraint.json_schema(tokenizer, schema), tokenizer, seed))
    jsonschema.validate(json.loads(said), schema)


@pytest.mark.parametrize("seed", range(2))
def test_a_published_vocabulary_is_constrained_as_well(seed: int) -> None:
    vocabulary = a_tokenizer()
    said = vocabulary.decode(ramble(Constraint.json_schema(vocabulary, PERSON), vocabulary, seed))
    jsonschema.validate(json.loads(said), PERSON)
    assert isinstance(json.loads(vocabulary.decode(ramble(Constraint.json_object(vocabulary), vocabulary, seed))), dict)


def test_a_vocabulary_of_pieces_is_constrained_as_well() -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581cats{}[]", "\u2581the", "\u2581cat"]
    inner = Inner(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    inner.add_special_tokens(["<s>", "</s>"])
    vocabulary = Tokenizer(inner)
    for texts in (["cats", " cat"], ["the cat", "[ü]\n"]):
        assert vocabulary.decode(ramble(Constraint.choice(vocabulary, texts), vocabulary, 1)) in texts
    constraint = Constraint.choice(vocabulary, ["cats sat"])
    constraint.begin_with("cats", vocabulary)
    assert vocabulary.decode(ramble(constraint, vocabulary, 0)) == " sat"


@settings(max_examples=20)
@given(
    some.lists(some.text(some.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6), min_size=1, max_size=4)
)
def test_a_choice_is_one_of_the_texts(tokenizer: Tokenizer, options: list[str]) -> None:
    assert tokenizer.decode(ramble(Constraint.choice(tokenizer, options), tokenizer, 1)) in options


@pytest.mark.parametrize("pattern", [r"[a-c]{2,4}/(x|ü)\n", r"\d{3}", r"a|"])
def test_a_regular_expression_matches_the_whole(tokenizer: Tokenizer, pattern: str) -> None:
    assert re.fullmatch(pattern, tokenizer.decode(ramble(Constraint.regex(tokenizer, pattern), tokenizer, 2)))


def test_a_grammar_may_count_what_no_regular_expression_can(tokenizer: Tokenizer) -> None:
    said = tokenizer.decode(ramble(Constraint.lark(tokenizer, 'start: "a" start "}" | "b"'), tokenizer, 0))
    assert re.fullmatch(r"(a*)b(\}*)", said) and said.count("a") == said.count("}")


def test_text_that_spells_a_control_token_is_not_that_token(tokenizer: Tokenizer) -> None:
    end, spelled = tokenizer.special("/think"), tokenizer.encode("<|/think|>")
    by_id, by_text = Constraint.lark(tokenizer, f"start: <[{end}]>"), Constraint.choice(tokenizer, ["<|/think|>"])
    assert ramble(by_id, tokenizer, 0) == [end]
    assert end not in ramble(by_text, tokenizer, 0)
    with pytest.raises(FourfoldError, match="does not fit"):
        Constraint.lark(tokenizer, f"start: <[{end}]>").take(spelled[0])


def test_forced_tokens_are_what_the_tokenizer_would_write(tokenizer: Tokenizer) -> None:
    constraint = Constraint.choice(tokenizer, ["the cat sat on the mat"])
    forced = constraint.forced()
    assert len(forced) > 1 and forced == tokenizer.encode("the cat sat on the mat")[: len(forced)]
    for token in forced:
        constraint.take(token)
    rest = ramble(constraint, tokenizer, 0)
    assert tokenizer.decode(forced + rest) == "the cat sat on the mat"


def test_thoughts_are_free_but_do_not_end_the_answer(tokenizer: Tokenizer) -> None:
    after = tokenizer.special("/think")
    constraint = Constraint(tokenizer, 'start: "cat"', after=after)
    logits = torch.zeros(tokenizer.vocab_size)
    for token in [*tokenizer.encode("free } text"), tokenizer.special("draw")]:
        free = constraint.mask(logits).isfinite()
        assert not constraint.may_end and constraint.forced() == []
        assert free.sum() == len(logits) - len(tokenizer.ends) and not free[list(tokenizer.ends)].any()
        constraint.take(token)
    constraint.take(after)
    assert tokenizer.decode(ramble(constraint, tokenizer, 0)) == "cat"


def test_thoughts_may_be_opened_by_the_first_token_alone(tokenizer: Tokenizer) -> None:
    opening, after = tokenizer.special("think"), tokenizer.special("/think")
    zeros = torch.zeros(tokenizer.vocab_size)
    thinking, at_once = (Constraint(tokenizer, 'start: "cat"', after, opening) for _ in range(2))
    assert thinking.mask(zeros)[opening] == 0 and thinking.forced() == []
    for token in (opening, *tokenizer.encode("dog"), after):
        thinking.take(token)
    assert thinking.mask(zeros)[opening] == -torch.inf
    assert tokenizer.decode(ramble(thinking, tokenizer, 0)) == "cat"
    at_once.take(tokenizer.encode("c")[0])
    assert at_once.mask(zeros)[opening] == -torch.inf


def test_what_the_prompt_holds_already_counts(tokenizer: Tokenizer) -> None:
    constraint = Constraint.json_schema(tokenizer, PERSON)
    constraint.begin_with('{"name": "Mi', tokenizer)
    said = '{"name": "Mi' + tokenizer.decode(ramble(constraint, tokenizer, 3))
    jsonschema.validate(json.loads(said), PERSON)
    with pytest.raises(ConfigError, match="^messages: what the answer begins with does not fit"):
        Constraint.json_schema(tokenizer, PERSON).begin_with('{"names', tokenizer)


def test_logits_wider_than_the_vocabulary_and_ruled_out_by_others(tokenizer: Tokenizer) -> None:
    constraint = Constraint.choice(tokenizer, ["7"])
    wide = torch.zeros(tokenizer.vocab_size + 9)
    assert constraint.mask(wide).isfinite().nonzero()[:, 0].tolist() == tokenizer.encode("7")
    wide[tokenizer.encode("7")] = -torch.inf
    with pytest.raises(FourfoldError, match="^constraint: no token that may come next"):
        constraint.mask(wide)


@pytest.mark.parametrize("kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("latent", "omni"))])
def test_in_the_engine_among_others_as_alone(tokenizer: Tokenizer, kind: str) -> None:
    def request(seed: int, bound: bool) -> Request:
        constraint = Constraint.regex(tokenizer, "(cat|dog|the mat){2,4}[0-9]\n") if bound else None
        return Request(words(5 + seed, seed), Sampling(1.0, seed=seed, max_tokens=30), constraint=constraint)

    asked = [(0, True), (1, False), (2, True)]
    model = served(kind, tokenizer)
    with Engine(model, threaded=False) as engine:
        answers = engine.generate([request(*each) for each in asked])
    for each, answer in zip(asked, answers, strict=True):
        with Engine(model, threaded=False) as engine:
            assert engine.generate([request(*each)])[0].tokens == answer.tokens
        if each[1]:
            assert answer.finish_reason == "stop" and re.fullmatch("(cat|dog|the mat){2,4}[0-9]\n", answer.text)


def test_copies_go_on_from_the_same_place_each_by_itself(tokenizer: Tokenizer) -> None:
    constraint = Constraint.json_schema(tokenizer, PERSON)
    constraint.begin_with('{"name": "Mi', tokenizer)
    copies = [constraint.copy() for _ in range(3)]
    said = [tokenizer.decode(ramble(copy, tokenizer, seed)) for seed, copy in enumerate(copies)]
    assert len(set(said)) == 3
    for seed, text in enumerate(said):
        alone = Constraint.json_schema(tokenizer, PERSON)
        alone.begin_with('{"name": "Mi', tokenizer)
        assert tokenizer.decode(ramble(alone, tokenizer, seed)) == text
    assert tokenizer.decode(ramble(constraint, tokenizer, 0)) == said[0]


def test_made_in_one_thread_and_used_in_another(tokenizer: Tokenizer) -> None:
    constraint, said = Constraint.choice(tokenizer, ["cat"]), list[int]()
    thread = threading.Thread(target=lambda: said.extend(ramble(constraint, tokenizer, 0)))
    thread.start()
    thread.join()
    assert tokenizer.decode(said) == "cat"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {}}, "s: not supported: not;"),
        (
            {"properties": {"a": {"items": {"anyOf": [{}, {"uniqueItems": True}]}}}},
            "s.properties.a.items.anyOf[1]: not supported: uniqu",
        ),
        (
            {"properties": {"a": {"$ref": "#/$defs/d"}}, "$defs": {"d": {"if": {}, "else": {}}}},
            "s.$defs.d: not supported: else, if;",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/nowhere"}}}, "s.properties.a: Pointer"),
        ({"properties": {"a": {"pattern": "(?=x)", "type": "string"}}}, "s.properties.a: regex parse error"),
        ({"type": "object", "properties": {"a": {"type": "strong"}}}, "s.properties.a: Invalid type: strong"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "s: Unsatisfiable schema"),
        ({"enum": ["\ud800"]}, "s: holds half a surrogate pair"),
        ([], "s: must be a JSON schema"),
    ],
)
def test_what_a_schema_may_not_say_is_named_with_its_place(schema: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}[^\n]*$"):
        check_schema(schema, "s")


def test_other_grammars_that_are_none_are_one_line(tokenizer: Tokenizer) -> None:
    for make, name in [
        (lambda: Constraint.regex(tokenizer, "(a"), "regex"),
        (lambda: Constraint.lark(tokenizer, "start: nothing"), "grammar"),
        (lambda: Constraint.choice(tokenizer, []), "choice"),
        (lambda: Constraint.json_schema(tokenizer, {"not": {}}), "schema"),
        (lambda: Constraint.json_schema(tokenizer, {"$ref": "#"}), "schema"),
    ]:
        with pytest.raises(ConfigError, match=f"^{name}: [^\n]+$"):
            make()
