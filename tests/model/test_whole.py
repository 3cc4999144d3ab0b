"""The whole network: multi-token prediction against its equations, other number formats, and what the config decides."""

import pytest
import torch
import torch.nn.functional as F

from fourfold.model.inputs import Batch
from fourfold.model.transformer import Transformer
from tests.builders import CONFIGS, base, build, everything, random_tokens
from tests.compare import assert_close


def test_multi_token_prediction_is_the_published_chain() -> None:
    """h'_i = W [norm(Emb(t_{i+j})) ; norm(h_i)] -> layer -> norm, each depth on the one before it, embedding first."""
    model = build(everything())
    config, tokens = model.config, random_tokens(2, 20)
    batch, d, eps = Batch.from_tokens(tokens), model.config.hidden_size, model.config.rms_norm_eps
    inputs: list[torch.Tensor] = []
    for module in model.mtp:
        module.layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    collapsed: list[torch.Tensor] = []
    for module in (model, *model.mtp):
        module.collapse.register_forward_hook(lambda *args: collapsed.append(args[-1]))
    with torch.no_grad():
        out = model.train_forward(batch)
        assert_close(out.hidden, F.rms_norm(collapsed[0], (d,), model.norm.weight, eps))
        assert len(out.mtp_hidden) == config.num_nextn_predict_layers == 2
        for j, module in enumerate(model.mtp):
            for row in range(2):
                for i in range(20 - 1 - j):
                    embedded = F.rms_norm(model.embed.weight[tokens[row, i + 1 + j]], (d,), module.enorm.weight, eps)
                    before = F.rms_norm(collapsed[j][20 * row + i], (d,), module.hnorm.weight, eps)
                    x = module.eh_proj.weight[:, :d] @ embedded + module.eh_proj.weight[:, d:] @ before
                    assert_close(inputs[j][20 * row + i], x.expand(config.streams.hc_mult, -1))
            assert_close(out.mtp_hidden[j], F.rms_norm(collapsed[j + 1], (d,), module.norm.weight, eps))


def test_trunk_and_training_forward_agree() -> None:
    model, batch = build(everything()), Batch.from_tokens(random_tokens(2, 40))
    with torch.no_grad():
        assert torch.equal(model.trunk(batch), model.train_forward(batch).hidden)
        assert torch.equal(model(batch).logits, model.logits(model.trunk(batch)))


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_the_table_when_tied(tied: bool) -> None:
    model = build(base(tie_word_embeddings=tied))
    assert hasattr(model, "head") is not tied
    assert (model.head_weight is model.embed.weight) is tied
    with torch.no_grad():
        hidden = model.trunk(Batch.from_tokens(random_tokens(1, 5)))
        weight = model.embed.weight if tied else model.head
        assert_close(model(random_tokens(1, 5)).logits[0], hidden @ weight.T)


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_weights(name: str) -> None:
    """Plain and cached passes run, give fp32 logits, and are near those of fp32 wherever no choice fell otherwise."""
    config = CONFIGS[name]().but(selection=None, experts=None)
    exact = build(config)
    low = Transformer(config, getattr(exact, "token_classes", None)).eval()
    low.load_state_dict(exact.state_dict())
    for module_name, parameter in low.named_parameters():
        if not low.keep_fp32(module_name):
            parameter.data = parameter.data.bfloat16()
    tokens = random_tokens(2, 40)
    with torch.no_grad():
        expected, logits, cache = exact(tokens).logits, low(tokens).logits, low.new_cache(2)
        chunks = torch.cat([low(chunk, cache=cache).logits for chunk in tokens.split([17, 1, 22], dim=1)], dim=1)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().mean() < 0.03 * expected.std()
    assert (chunks - expected).abs().mean() < 0.03 * expected.std()


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_with_all_parts_runs(name: str) -> None:
    model = build(CONFIGS[name]()).bfloat16()
    tokens, cache = random_tokens(2, 50), model.new_cache(2)
    with torch.no_grad():
        assert model(tokens).logits.isfinite().all()
        assert all(model(chunk, cache=cache).logits.isfinite().all() for chunk in tokens.split(13, dim=1))
    out = model.train_forward(Batch.from_tokens(tokens))
    model.logits(out.hidden).logsumexp(-1).mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_what_keeps_fp32() -> None:
    model = build(everything())
    kept = {name for name in model.state_dict() if model.keep_fp32(name)}
    assert {name.split(".")[-2] for name in kept} == {"router", "attention_site", "ffn_site", "collapse"}
    assert all(".indexer." not in name for name in kept)


def test_gradients_of_a_checkpointed_and_a_plain_run_are_the_same_twice() -> None:
    """One thread, same inputs: bit for bit, which resumed = uninterrupted stands on."""
    grads = []
    for _ in range(2):
        model = build(everything())
        out = model.train_forward(Batch.from_tokens(random_tokens(2, 40)))
        (out.hidden.square().mean() + sum(h.square().mean() for h in out.mtp_hidden)).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
