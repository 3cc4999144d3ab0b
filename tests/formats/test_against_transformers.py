"""ours = theirs: folders saved by transformers, an independent implementation, opened by `fourfold.load`, and our exports by it.

No scores tie in these models: the library's top-k is given at least 32 index heads, and its routers fp32 scores of random weights.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fourfold
from fourfold.config import RopeScaling
from fourfold.engine.sequence import Sequence
from fourfold.formats import adapter_of, export
from fourfold.model.inputs import Batch
from fourfold.model.rope import frequencies, yarn_attention_scale, yarn_table_scale
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from tests.builders import build
from tests.compare import assert_close, assert_same_greedy, assert_same_selection, assert_same_tokens
from tests.formats.folders import (
    CASES,
    LENGTH,
    LLAMA,
    V3,
    VOCABULARY,
    assert_same_logits,
    experts,
    open_folder,
    random_folder,
    random_tokens,
    spread,
    transformers,
)

PROMPT, NEW = 40, 64


@dataclass
class Case:
    """One random model as transformers has it, as the folder that it saved, and as we load that."""

    kind: str
    folder: Path
    theirs: torch.nn.Module
    ours: Transformer


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    kind, name = request.param
    folder = tmp_path_factory.mktemp(kind)
    theirs = random_folder(kind, name, folder)
    yield Case(kind, folder, theirs, fourfold.load(folder))


@torch.no_grad()
def test_logits(case: Case) -> None:
    assert_same_logits(case.ours, case.theirs, random_tokens())


@torch.no_grad()
def test_greedy_generation(case: Case) -> None:
    """64 tokens with a cache. Theirs reads what we wrote: where each token is its choice too, it would have written the same."""
    sequence, tokens = Sequence(case.ours), random_tokens(PROMPT, seed=2)[0].tolist()
    for _ in range(NEW):
        tokens.append(int(sequence.feed(tokens[len(sequence) :]).argmax()))
    logits = case.theirs(torch.tensor([tokens[:-1]])).logits[0, PROMPT - 1 :]
    assert_same_tokens(tokens[PROMPT:], logits.argmax(-1).tolist(), logits)
    assert len(set(tokens[PROMPT:])) > 5  # it does not repeat itself


@torch.no_grad()
def test_export(case: Case, tmp_path: Path) -> None:
    """Written by us, a folder gives transformers the same logits and us the same bits."""
    export(case.ours, tmp_path / "copy", case.kind)
    tokens = random_tokens(120, seed=3)
    assert_same_greedy(open_folder(tmp_path / "copy")(tokens).logits, case.theirs(tokens).logits)
    again = fourfold.load(tmp_path / "copy")
    assert again.config == case.ours.config
    assert torch.equal(again(tokens).logits, case.ours(tokens).logits)


@pytest.mark.parametrize("case", [case for case in CASES if case.values[0][0] == "deepseek_v32"], indirect=True)
@torch.no_grad()
def test_index_choices(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The indexers of V3.2 choose the same tokens in every layer."""
    indexer = transformers.models.deepseek_v32.modeling_deepseek_v32.DeepseekV32Indexer
    choose, chosen = indexer.forward, []
    monkeypatch.setattr(indexer, "forward", lambda *args, **kwargs: chosen.append(choose(*args, **kwargs)) or chosen[-1])
    tokens, trace = random_tokens(), Trace()
    case.theirs(tokens)
    case.ours(tokens, trace=trace)
    causal, k = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), case.ours.config.selection.index_topk
    for layer, choice in zip(trace.layers, chosen, strict=True):
        theirs = torch.zeros(1, LENGTH, LENGTH, dtype=torch.bool).scatter(-1, choice.long(), True) & causal
        assert_same_selection(layer.index_mask, theirs)
        assert layer.index_mask[0, -1].sum() == k < LENGTH
        ranked = layer.index_scores[0].masked_fill(~causal, float("-inf"))[k:].sort(-1, descending=True).values
        assert (ranked[:, k - 1] - ranked[:, k]).min() > 5e-5  # else another draw is needed: rounding may decide


@torch.no_grad()
def test_multi_token_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their reader of the layers after the last, given the hidden states that ours goes on from, predicts what ours predicts."""
    kind, layers = "deepseek_v3", V3["V3"]["num_hidden_layers"]
    published = V3["V3"] | {"max_position_embeddings": 512, "num_nextn_predict_layers": 1}
    ours = build(adapter_of(kind).config(published).but(initializer_range=0.2))
    export(ours, tmp_path / "copy")
    library = transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3PreTrainedModel
    monkeypatch.setattr(library, "_keys_to_ignore_on_load_unexpected", [rf"model\.layers\.{layers}\."])  # V3 itself has 61
    main = open_folder(tmp_path / "copy")
    theirs = transformers.modeling_layers.MtpModel.from_pretrained(main).eval()
    seen: list[torch.Tensor] = []
    main.model.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tokens = random_tokens(120)
    main(tokens)
    cache = transformers.cache_utils.MtpCache(config=main.config.get_mtp_config())
    places = torch.arange(1, tokens.shape[1])[None]
    hidden = theirs.forward_layer(0, seen[0][:, :-1], places, cache, input_ids=tokens[:, 1:])
    predicted = ours.logits(ours.train_forward(Batch.from_tokens(tokens)).mtp_hidden[0])
    assert_same_greedy(predicted[None, :-1], theirs.shared_head(hidden))
    assert not torch.allclose(predicted[None], ours(tokens).logits, atol=0.1)


def test_what_savers_drop(case: Case) -> None:
    """transformers announces multi-token prediction that it does not save."""
    said = json.loads((case.folder / "config.json").read_text()).get("num_nextn_predict_layers", 0)
    assert said == (1 if case.kind == "deepseek_v3" else 0) and len(case.ours.mtp) == 0


@torch.no_grad()
def test_the_first_of_the_experts(tmp_path: Path) -> None:
    """DeepSeekMoE 16B has no class there: Llama's layers with V2's experts in them make one."""
    sizes = LLAMA["V1: every head its own keys"] | {"vocab_size": VOCABULARY, "max_position_embeddings": 512}
    routed = experts(9, 3, 14, shared=2, dense=1) | {"topk_method": "greedy"}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, attn_implementation="eager")).eval()
    v2 = transformers.DeepseekV2Config(**sizes, **routed, experts_implementation="eager")
    for layer in theirs.model.layers[1:]:
        layer.mlp = transformers.models.deepseek_v2.modeling_deepseek_v2.DeepseekV2Moe(v2)
    spread(theirs, seed=5)
    save_file(apart(theirs.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek", **sizes, **routed, "topk_method": None}))
    tokens = random_tokens()
    ours = fourfold.load(tmp_path)
    assert_same_greedy(ours(tokens).logits, theirs(tokens).logits)
    export(ours, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["model_type"] == "deepseek"
    assert torch.equal(fourfold.load(tmp_path / "copy")(tokens).logits, ours(tokens).logits)


def apart(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each expert's matrices by themselves, as files have them."""
    files: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        stem, _, stack = name.rpartition(".")
        if not stem.endswith("experts") or "shared" in stem:
            files[name] = tensor.contiguous()
            continue
        for e, expert in enumerate(tensor):
            parts = zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True) if stack == "gate_up_proj" else [(stack, expert)]
            files |= {f"{stem}.{e}.{part}.weight": matrix.contiguous() for part, matrix in parts}
    return files


@pytest.mark.parametrize("mscale", [(1.0, 1.0), (1.0, 0.0), (0.7, 0.4), (0.7, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_exported_yarn(mscale: tuple[float, float]) -> None:
    """The library takes a zero for a missing field, so that what it would get wrong is written as `attention_factor` too."""
    scaling = RopeScaling(factor=40, original_max_position_embeddings=64, mscale=mscale[0], mscale_all_dim=mscale[1])
    config = adapter_of("deepseek_v3").config(V3["V3"] | {"max_position_embeddings": 512}).but(attention__rope_scaling=scaling)
    published = adapter_of("deepseek_v3").published(config)
    theirs = transformers.DeepseekV3Config(**published)
    turns, factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs)
    assert factor == pytest.approx(yarn_table_scale(scaling))
    assert_close(turns, frequencies(config.attention.rope_dim, config.attention.rope_theta, scaling))
    softmax = transformers.models.deepseek_v3.modeling_deepseek_v3.yarn_apply_mscale(theirs.rope_parameters, 1.0)
    assert softmax == pytest.approx(yarn_attention_scale(scaling))
    assert adapter_of("deepseek_v3").config(published) == config
