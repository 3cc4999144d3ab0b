"""All figures of omni models: one that knows everything gets all of it, one that says the same to everything gets chance."""

import dataclasses

import pytest
import torch

from fourfold.data.omni import OmniCorpus
from fourfold.evals.omni.crossing import hallucination
from fourfold.evals.omni.emoji import captions, pairs_of, word_overlap
from fourfold.evals.omni.fashion import Wardrobe
from fourfold.evals.omni.fidelity import fidelity, reduced
from fourfold.evals.omni.sounds import names_of
from fourfold.evals.omni.speech import turned
from fourfold.evals.omni.suite import KEYS, Sizes, measure
from fourfold.parts import MediaOutConfig
from fourfold.text.tokenizer import Tokenizer
from tests.compare import assert_close
from tests.evals.omni_small import THINGS, Constant, Mirror, Oracle, make_codec, make_omni

MEDIA_KEYS = set(KEYS) - {"text_bits_per_byte"}
NAMED = (
    "fashion_mnist_accuracy drawn_fashion_mnist_accuracy drawn_diversity emoji_retrieval_at_1 clip_object_accuracy "
    "clip_direction_accuracy drawn_clip_direction_accuracy speech_word_accuracy speech_cer_synthetic speech_cer_real "
    "speech_cer_shuffled sound_family_accuracy cross_modal_accuracy hallucination_rate codec_psnr text_bits_per_byte"
).split()


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> OmniCorpus:
    return make_omni(tmp_path_factory.mktemp("corpora") / "media", tokenizer)


@pytest.fixture(autouse=True)
def few_candidates_and_no_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions are alike when they are the same."""

    def embedded(texts: list[str]) -> torch.Tensor:
        known = sorted(set(texts))
        return torch.eye(len(known))[[known.index(text) for text in texts]]

    monkeypatch.setattr("fourfold.evals.omni.emoji.CANDIDATES", 5)
    monkeypatch.setattr("fourfold.evals.omni.similarity.lacking", lambda: None)
    monkeypatch.setattr("fourfold.evals.omni.similarity.embedded", embedded)


def test_the_names_are_those_that_programs_read() -> None:
    assert set(NAMED) <= set(KEYS) and len(set(KEYS)) == len(KEYS)


def test_who_knows_everything_gets_all_of_it(omni: OmniCorpus) -> None:
    found = measure(Oracle(omni.items("held_out"), Mirror()), omni, Sizes(drawn=4))
    assert found.keys() == MEDIA_KEYS
    for name, about in found.items():
        if name != "speech_cer_real":
            assert about["count"] > 0 and None not in (about["chance"], about["baseline"]) and about["baseline_is"], name
            low, high = about["interval"]
            assert low - 1e-9 <= about["value"] <= high + 1e-9, name
    best = {name for name in found if name.endswith(("accuracy", "_f1", "at_1", "similarity"))}
    assert len(best) == 11 and {found[name]["value"] for name in best} == {1.0}
    assert found["hallucination_rate"]["value"] == 0
    assert found["speech_word_accuracy"]["baseline"] == found["sound_family_accuracy"]["baseline"] == 1  # a tone each
    assert found["speech_word_accuracy"]["chance"] == found["speech_word_accuracy"]["majority"] == 1 / len(THINGS)
    assert found["hallucination_rate"]["affirmed_present"]["share"] == 1
    assert found["speech_cer_synthetic"]["value"] == 0 and found["speech_cer_shuffled"]["value"] > 0.5
    assert found["codec_psnr"]["value"] == 60  # the mirror loses nothing
    assert found["drawn_diversity"]["ceiling"] == pytest.approx(1)
    assert "asterisk" in found["speech_cer_real"]["reason"] and found["speech_cer_real"]["value"] is None
    parts = found["emoji_retrieval_at_1"]["parts"]
    assert parts.keys() >= {"picture_to_caption_noto", "caption_to_picture_fluent", "across_styles"}
    assert all(part["share"] == 1 for part in parts.values())
    assert set(found["cross_modal_accuracy"]["parts"]) == {
        "question_asked_aloud", "spoken_description", "which_picture_a_sentence_means", "which_picture_a_voice_means"
    }  # fmt: skip


def test_who_says_the_same_to_everything_gets_chance(omni: OmniCorpus) -> None:
    found = measure(Constant("shirt", make_codec()), omni, Sizes(drawn=4))
    for name in ("fashion_mnist_accuracy", "drawn_fashion_mnist_accuracy", "emoji_retrieval_at_1", "clip_object_accuracy"):
        assert found[name]["value"] == pytest.approx(found[name]["chance"]), name
    for name in ("sound_family_accuracy", "clip_direction_accuracy", "drawn_clip_direction_accuracy", "drawn_diversity"):
        assert found[name]["value"] == 0, name
    for name in ("cross_modal_accuracy", "hallucination_rate", "speech_word_accuracy"):
        assert found[name]["value"] == 0, name
    assert found["speech_cer_synthetic"]["value"] == found["speech_cer_shuffled"]["value"] > 0.7
    yes = measure(Constant("yes"), omni, Sizes(drawn=4))
    assert yes["hallucination_rate"]["value"] == yes["hallucination_rate"]["baseline"] == 1
    spoken = yes["cross_modal_accuracy"]["parts"]["spoken_description"]
    assert 0 < spoken["share"] < 1 and spoken["constant"] == max(spoken["share"], 1 - spoken["share"])
    assert yes["drawn_diversity"]["value"] is None and "draws nothing" in yes["codec_psnr"]["reason"]
    left = measure(Constant("moves left"), omni, Sizes(drawn=4))["clip_direction_accuracy"]
    assert left["value"] == left["chance"] == left["baseline"] == 1 / 8 and left["ceiling"] == 1


def test_meanings_are_compared_where_the_package_is(omni: OmniCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.evals.omni.similarity.lacking", lambda: "no-such is not installed; add it")
    found = captions(Oracle([]), omni.items("held_out"))
    assert found["emoji_caption_f1"]["value"] == 1 and found["emoji_caption_similarity"]["value"] is None
    assert "not installed" in found["emoji_caption_similarity"]["reason"]


def test_the_same_figures_every_time_and_fewer_with_a_limit(omni: OmniCorpus) -> None:
    def figures(limit: int | None) -> dict:
        found = measure(Constant("yes", make_codec()), omni, Sizes(drawn=2).at_most(limit))
        return {name: {key: value for key, value in about.items() if key != "seconds"} for name, about in found.items()}

    whole, few = figures(None), figures(4)
    assert figures(None) == whole
    assert few["fashion_mnist_accuracy"]["count"] == 4 < whole["fashion_mnist_accuracy"]["count"]
    assert few["clip_direction_accuracy"]["count"] == 4 and few["hallucination_rate"]["count"] == 4
    assert few["emoji_retrieval_at_1"]["concepts"] == 5 < whole["emoji_retrieval_at_1"]["concepts"]


def test_a_corpus_without_a_source_says_so(omni: OmniCorpus) -> None:
    bare = OmniCorpus(omni.corpus)
    bare.sources = {}
    found = measure(Constant("yes", make_codec()), bare, Sizes())
    assert found.keys() == MEDIA_KEYS
    assert all(about["value"] is None and about["reason"] for about in found.values())


def test_pictures_of_a_class_are_counted_by_class(omni: OmniCorpus) -> None:
    wardrobe = Wardrobe.of(omni.items("held_out", {"fashion"}))
    assert wardrobe.pixels.shape == (12, 3, 32, 32) and list(wardrobe.names.values()) == ["ankle boot", "shirt", "t-shirt"]
    assert [len(own) for own in wardrobe.some(3)] == [3, 3, 3]
    less = wardrobe.cut(5)
    assert len(less.items) == len(less.pixels) == len(less.classes) == 5 and less.names == wardrobe.names
    assert [less.names[item.concept] for item in less.items] == [list(less.names.values())[k] for k in less.classes]


def test_one_pair_of_each_concept_and_caption(omni: OmniCorpus) -> None:
    items = omni.items("held_out")
    pairs = pairs_of([*items, *items])
    assert len(pairs) == len(THINGS) and all(a.details["code"] == b.details["code"] for a, b in pairs)
    assert all((a.source, b.source) == ("fluent", "noto") for a, b in pairs)
    alone = dataclasses.replace(items[-1], source="fluent", details={"code": "x"})
    assert len(pairs_of([*items, alone])) == len(THINGS)


def test_another_clip_has_other_words_and_about_the_length(omni: OmniCorpus) -> None:
    items = omni.items("held_out", {"speech"})
    assert all(other.text != item.text for other, item in zip(turned(items), items, strict=True))
    gaps = [abs(len(other.text) - len(item.text)) for other, item in zip(turned(items), items, strict=True)]
    assert sorted(gaps)[len(gaps) // 2] <= 2


def test_a_label_of_two_families_names_neither(omni: OmniCorpus) -> None:
    items = omni.items("held_out", {"sounds"})
    odd = [dataclasses.replace(item, text="hit") for item in items[:2]]
    assert "hit" not in {form for own in names_of([*items, *odd]).values() for form in own}
    one = [dataclasses.replace(items[0], text="snare")]
    assert "snares" in names_of([*items, *one])[items[0].details["family"]]


def test_words_shared(omni: OmniCorpus) -> None:
    assert word_overlap("a red fox", "red fox") == pytest.approx(0.8)
    assert word_overlap("", "fox") == word_overlap("owl", "fox") == 0 and word_overlap("Fox!", "fox") == 1


def test_asking_about_things_that_are_the_same_is_left_out(omni: OmniCorpus) -> None:
    pictures = [item for item in omni.items("held_out", {"fluent"}) if item.text == "cat"]
    assert hallucination(Constant("yes"), pictures, 5)["value"] is None


def test_reduction_keeps_its_bits_and_a_flat_picture(omni: OmniCorpus) -> None:
    flat = torch.full((2, 3, 32, 32), 0.4)
    assert_close(reduced(flat, 0.16), flat)
    step = torch.zeros(1, 3, 32, 32)
    step[..., 16:] = 1
    assert_close(reduced(step, 24.0), step)  # as many bits as it has
    coarse = reduced(step, 24 / 64)
    assert 0 < (coarse - step).abs().mean() < 0.2
    about = fidelity(make_codec(), omni.items("held_out", {"fluent", "sprites"})[:6], MediaOutConfig(image_token_size=25))
    assert about["sources"].keys() == {"fluent"} and about["bits_per_pixel"] == pytest.approx(4.6439 / 64, rel=1e-4)
