"""Adapters: what they train, what they are before training, how they are saved and merged."""

import pickle
import sys

import numpy as np
import pytest
import torch
import transformers as tf
from checkpoints import checkpoint
from families import FAMILIES, tokenizer
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, LlamaForCausalLM

from polyvec import Embedder
from polyvec.embed.compose import compose
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import MissingExtraError, ModelError, SettingsError
from polyvec.train import adapters
from polyvec.train.adapter_kinds import linear_layers
from polyvec.train.adapters import check_gradients, finish, prepare
from polyvec.train.language_head import attach_head, causal

TEXTS = ["the cat sat", "a dog looks on the very long mat", "text of two"]
LORA = {"kind": "lora", "rank": 4, "dropout": 0.0}


def embedder(backbone: str = "meta-llama/", **more) -> Embedder:
    return compose(EmbedderSettings(backbone=str(checkpoint(backbone)), **more))


def shake(model: torch.nn.Module) -> None:
    """As a few steps of training would: no trained weight is what it was."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.2 * torch.randn(each.shape, generator=generator))


def trained_names(model: torch.nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


def same(a, b, atol=5e-5) -> None:
    np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("family", ["bert", "albert", "distilbert", "modernbert", "t5_encoder"])
def test_every_linear_layer_of_the_blocks_is_a_target_and_no_other(family):
    make, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = tf.T5EncoderModel(make()) if family == "t5_encoder" else AutoModel.from_config(make())
    linear = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    outside = {"pooler.dense", "pooler", "encoder.embedding_hidden_mapping_in"}
    assert set(linear_layers(model)) == linear - outside
    assert len(linear_layers(model)) >= 6


def test_conv1d_of_gpt2_counts_as_linear():
    model = AutoModel.from_pretrained(checkpoint("openai-community/gpt2"))
    assert len(linear_layers(model)) == 6 * 4


def test_lora_changes_nothing_before_training_and_trains_only_itself():
    model = embedder()
    before = model.encode(TEXTS)
    found = prepare(model, LORA)
    same(model.encode(TEXTS), before)
    assert found.names and all(".lora_" in name for name in found.names)
    assert found.num_trained == sum(
        4 * (layer.in_features + layer.out_features)
        for name, layer in linear_layers(model.backbone.model).items()
        if name.endswith("base_layer")
    )
    assert len(found.names) == 2 * 7 * 6, "A and B of seven layers in six blocks"


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [
        ("meta-llama/", {}),
        ("meta-llama/", {"rslora": True}),
        ("meta-llama/", {"dora": True}),
        ("meta-llama/", {"targets": ["q_proj"]}),
        ("openai-community/gpt2", {}),
    ],
)
def test_a_trained_adapter_loads_everywhere_to_the_same_vectors(tmp_path, backbone, kind):
    model = embedder(backbone)
    before = model.encode(TEXTS)
    prepare(model, {**LORA, **kind})
    shake(model)
    wanted = model.encode(TEXTS)
    assert np.abs(wanted - before).max() > 1e-3
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/model.safetensors").exists(), "the base stays where it is"
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), wanted)
    same(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), wanted)
    base = AutoModel.from_pretrained(checkpoint(backbone))
    same(means(PeftModel.from_pretrained(base, tmp_path / "saved")), wanted)
    adapters.merge(model)
    same(model.encode(TEXTS), wanted)
    assert not any("lora" in name for name in model.state_dict())
    model.save_pretrained(tmp_path / "merged")
    same(means(AutoModel.from_pretrained(tmp_path / "merged")), wanted)


def means(model) -> np.ndarray:
    words = tokenizer(bos=False, eos=False)
    with torch.no_grad():
        states = [
            model(**_tokens(words, text), output_hidden_states=True).hidden_states[-1]
            for text in TEXTS
        ]
    return torch.cat([state.mean(1) for state in states]).numpy()


def _tokens(words, text):
    found = words(text, return_tensors="pt")
    return {key: found[key] for key in ("input_ids", "attention_mask")}


def test_bitfit_trains_all_bias_terms_and_nothing_else():
    model = embedder("openai-community/gpt2")
    found = prepare(model, {"kind": "bitfit"})
    names = {name for name, _ in model.named_parameters()}
    assert set(found.names) == {name for name in names if name.endswith(".bias")}
    assert len(found.names) == 6 * 6 + 1, "two norms and four layers a block, the last norm"


def test_bitfit_of_bert_leaves_the_pooler(tmp_path):
    torch.manual_seed(0)
    model = tf.BertModel(FAMILIES["bert"][0]())
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    embedder = Embedder.from_pretrained(tmp_path, pooling="mean")
    found = prepare(embedder, {"kind": "bitfit"})
    assert "backbone.model.encoder.layer.0.attention.self.query.bias" in found.names
    assert not any("pooler" in name for name in found.names)
    assert not any("pooler" in name for name in prepare(embedder, {"kind": "full"}).names)


@pytest.mark.parametrize(
    ("adapter", "train", "error", "message"),
    [
        ({"kind": "bitfit"}, (), ModelError, "LlamaModel has no bias terms"),
        ({"kind": "frozen"}, adapters.PARTS, ModelError, "trains nothing"),
        ({"kind": "lorra"}, (), SettingsError, "Did you mean 'lora'"),
        ({"kind": "lora", "rang": 8}, (), SettingsError, "Did you mean 'rank'"),
        ({"rank": 8}, (), SettingsError, "adapter has no kind"),
        # GritLM's names on a model that has others.
        ({**LORA, "targets": ["q_proj", "w1"]}, (), SettingsError, "'w1' matches no linear layer"),
        (LORA, ("poolings",), SettingsError, "Did you mean 'pooling'"),
        ({**LORA, "merge": 1}, (), SettingsError, "'merge' is 1, expected true or false"),
        ({"kind": "qlora", "merge": True}, (), SettingsError, "of qlora false"),
    ],
)
def test_what_would_train_nothing_or_is_not_known_is_an_error(adapter, train, error, message):
    with pytest.raises(error, match=message):
        prepare(embedder(), adapter, train)


def test_parts_around_a_frozen_backbone_are_trained():
    settings = {"projections": ({"kind": "dense", "out_features": 8},)}
    model = embedder(pooling="latent_attn", pooling_settings={"num_latents": 4}, **settings)
    found = prepare(model, {"kind": "frozen"})
    assert {name.split(".")[0] for name in found.names} == {"pooling_module", "projections"}
    only = prepare(model, {"kind": "frozen"}, ["projections"])
    assert {name.split(".")[0] for name in only.names} == {"projections"}


@pytest.mark.parametrize("kind", ["lora", "frozen"])
def test_rows_of_added_tokens_are_trained_and_saved(tmp_path, kind):
    """SILENT row 23: they are no part of a plain adapter."""
    model = embedder(template="llama2vec", pooling="mean")
    before = model.encode(TEXTS)
    ids = adapters.new_rows(model)
    assert len(ids) == 16
    prepare(model, {**LORA} if kind == "lora" else {"kind": kind})
    same(model.encode(TEXTS), before)
    tokens = [n for n in trained_names(model) if "trainable_tokens" in n]
    assert len(tokens) == 1
    table = next(p for n, p in model.named_parameters() if n.endswith("base_layer.weight"))
    assert len(table) == model.backbone.num_rows
    old = table.detach().clone()
    shake(model)
    wanted = model.encode(TEXTS)
    assert np.abs(wanted - before).max() > 1e-3
    assert torch.equal(table, old), "no row of another token moves"
    model.save_pretrained(tmp_path / "saved")
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), wanted)
    adapters.merge(model)
    same(model.encode(TEXTS), wanted)
    merged = model.backbone.model.get_input_embeddings().weight
    moved = {int(i) for i in (merged != old).any(dim=1).nonzero()}
    assert moved == set(ids)
    model.save_pretrained(tmp_path / "merged")
    same(Embedder.from_pretrained(tmp_path / "merged").encode(TEXTS), wanted)


def test_a_next_stage_goes_on_with_the_adapter_or_merges_it(tmp_path):
    model = embedder()
    prepare(model, LORA)
    shake(model)
    wanted = model.encode(TEXTS)
    again = prepare(model, None, before=LORA)
    assert all(".lora_" in name for name in again.names)
    same(model.encode(TEXTS), wanted, 0)
    prepare(model, {**LORA, "rank": 2})
    same(model.encode(TEXTS), wanted)
    assert model.backbone.model.peft_config["default"].r == 2
    shake(model)
    wanted = model.encode(TEXTS)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/model.safetensors").is_file(), "its base is nowhere else"
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), wanted)
    same(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), wanted)
    loaded = Embedder.from_pretrained(tmp_path / "saved")
    assert all(".lora_" in name for name in prepare(loaded).names), "a loaded adapter goes on"
    finish(model, {**LORA, "merge": True})
    same(model.encode(TEXTS), wanted)
    assert not any("lora" in name for name in model.state_dict())


def test_experts_of_a_mixture_are_adapted_too(tmp_path):
    model = embedder("allenai/OLMoE")
    before = model.encode(TEXTS)
    with pytest.raises(SettingsError, match="experts = false"):
        prepare(model, {"kind": "lora", "dropout": 0.1})
    found = prepare(model, LORA)
    assert any(".experts." in name for name in found.names)
    assert np.abs(model.encode(TEXTS) - before).max() < 1e-6
    shake(model)
    wanted = model.encode(TEXTS)
    model.save_pretrained(tmp_path / "saved")
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), wanted)
    adapters.merge(model)
    same(model.encode(TEXTS), wanted, 1e-4)
    plain = prepare(embedder("allenai/OLMoE"), {**LORA, "experts": False, "dropout": 0.1})
    assert not any(".experts." in name for name in plain.names)


def test_an_adapter_that_gets_no_gradient_is_an_error():
    """SILENT row 22: B stays zero, and the run looks fine."""
    model = embedder()
    prepare(model, LORA)
    model.train()
    batch = tokens_of(model)
    model(batch).square().sum().backward()
    check_gradients(model)
    for each in model.parameters():
        each.grad = None
    with pytest.raises(ModelError, match="no trained weight has a gradient"):
        check_gradients(model)
    model(batch).square().sum().backward()
    name, stuck = next((n, p) for n, p in model.named_parameters() if ".lora_B." in n)
    stuck.grad.zero_()
    with pytest.raises(ModelError, match="is zero and its gradient, too"):
        check_gradients(model)
    stuck.grad = None
    with pytest.raises(ModelError, match=f"{name} has no gradient"):
        check_gradients(model)


def tokens_of(model):
    from polyvec.embed.encoding import tokenize

    found = [each for (each,) in tokenize(model, TEXTS, model.prompt_for(None, None, None))]
    return TokenBatch.of(range(len(found)), found)


@pytest.mark.parametrize("rows_added", [False, True])
def test_an_adapter_beside_a_language_models_head_is_saved_with_it(tmp_path, rows_added):
    """GritLM by LoRA: vectors and next tokens are the same after loading."""
    model = embedder(attention="bidirectional", template="llama2vec" if rows_added else None)
    attach_head(model)
    prepare(model, LORA)
    shake(model)
    wanted, ids = model.encode(TEXTS), torch.tensor([[5, 9, 7]])
    states = model.backbone(TokenBatch.of_ids([ids[0].numpy()]), attention=causal(model.backbone))
    logits = model.backbone.logits(states.last_BTD)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/model.safetensors").exists() is rows_added
    again = Embedder.from_pretrained(tmp_path / "saved")
    same(again.encode(TEXTS), wanted)
    base = tmp_path / "saved" if rows_added else checkpoint("meta-llama/")
    lm = LlamaForCausalLM.from_pretrained(base, adapter_kwargs={"subfolder": "none"})
    lm.model = PeftModel.from_pretrained(lm.model, tmp_path / "saved")
    if not rows_added:
        torch.testing.assert_close(lm(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-4)
    attach_head(again)
    states = again.backbone(TokenBatch.of_ids([ids[0].numpy()]), attention=causal(again.backbone))
    torch.testing.assert_close(again.backbone.logits(states.last_BTD), logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_a_model_whose_pooling_reads_its_head_is_saved_and_goes_on(tmp_path):
    model = embedder(pooling="lexical", pooling_settings={"over": "max", "skip_first": True})
    prepare(model, LORA)
    shake(model)
    wanted = model.encode(TEXTS)
    model.save_pretrained(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved")
    same(again.encode(TEXTS), wanted)
    found = prepare(again)
    assert found.names and all(".lora_" in name for name in found.names)
    shake(again)
    wanted = again.encode(TEXTS)
    prepare(again, {**LORA, "rank": 2})
    same(again.encode(TEXTS), wanted)
    again.save_pretrained(tmp_path / "again")
    same(Embedder.from_pretrained(tmp_path / "again").encode(TEXTS), wanted)


HEADS = {
    "LMORT": {
        "pooling": "lmort",
        "pooling_settings": {"align_layer": 2, "uniform_layer": 4, "num_blocks": 1, "num_heads": 4},
    },
    "MLTP": {"pooling": "trainable", "pooling_settings": {"num_latents": 4, "num_heads": 4}},
    "NV-Embed": {"pooling": "latent_attn", "pooling_settings": {"num_latents": 4}},
    "Search-Adaptor": {"projections": ({"kind": "residual_adapter"},)},
    "CSR": {"projections": ({"kind": "csr", "num_latents": 64, "k": 8},)},
}


@pytest.mark.parametrize("system", HEADS)
def test_a_head_on_a_frozen_backbone_is_all_that_moves(tmp_path, system):
    model = embedder(**HEADS[system])
    before = {name: each.clone() for name, each in model.backbone.state_dict().items()}
    found = prepare(model, {"kind": "frozen"})
    assert found.names and not any(name.startswith("backbone") for name in found.names)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    (model(tokens_of(model)).square().sum()).backward()
    check_gradients(model)
    optimizer.step()
    model.eval()
    for name, each in model.backbone.state_dict().items():
        assert torch.equal(each, before[name]), name
    wanted = model.encode(TEXTS)
    model.save_pretrained(tmp_path / "saved")
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), wanted)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_soft_prompt_is_read_before_every_text_and_is_all_that_is_trained(tmp_path, pooling):
    model = embedder("bos:meta-llama/", pooling=pooling)
    plain = model.encode(TEXTS)
    old = model.backbone.num_rows
    found = prepare(model, {"kind": "prompt", "num_tokens": 5})
    assert found.num_trained == 5 * 32 and len(found.names) == 1
    read = model.tokenizer.convert_ids_to_tokens(tokens_of(model).ids_T)
    assert read[:7] == ["<s>", *(f"<prompt_{i}>" for i in range(5)), "the"]
    begun = model.encode(TEXTS)
    assert np.abs(begun - plain).max() > 1e-3
    model.train()
    model(tokens_of(model)).square().sum().backward()
    check_gradients(model)
    model.eval()
    shake(model)
    wanted = model.encode(TEXTS)
    assert np.abs(wanted - begun).max() > 1e-3
    model.save_pretrained(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved")
    same(again.encode(TEXTS), wanted)
    same(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), wanted)
    assert prepare(again).num_trained == 5 * 32, "and goes on"
    adapters.merge(model)
    same(model.encode(TEXTS), wanted)
    assert model.backbone.num_rows == old + 5
    with pytest.raises(SettingsError, match="num_tokens 2000 is not between 1 and"):
        prepare(embedder(), {"kind": "prompt", "num_tokens": 2000})


def test_qlora_without_bitsandbytes_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"bitsandbytes.*polyvec\[qlora\]"):
        prepare(embedder(), {"kind": "qlora"})


def test_qlora_trains_beside_weights_of_four_bits(tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    model = embedder()
    before = model.encode(TEXTS)
    found = prepare(model, {"kind": "qlora", "rank": 4, "dropout": 0.0})
    assert found.names and all(".lora_" in name for name in found.names)
    rounded = embedder()
    for name, layer in linear_layers(rounded.backbone.model).items():
        weight = model.backbone.model.get_submodule(name).base_layer.weight
        layer.weight.data = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    same(model.encode(TEXTS), rounded.encode(TEXTS))
    assert np.abs(model.encode(TEXTS) - before).max() > 1e-2
    model.train()
    model(tokens_of(model)).square().sum().backward()
    check_gradients(model)
    model.eval()
    shake(model)
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/model.safetensors").exists()
    # On the folder's own weights: those of an adapter of the same values without four bits.
    plain = embedder()
    prepare(plain, LORA)
    state = {k: v for k, v in model.state_dict().items() if ".lora_" in k}
    plain.load_state_dict(state, strict=False)
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), plain.encode(TEXTS))
    with pytest.raises(ModelError, match="cannot be merged into weights of four bits"):
        prepare(model, LORA)
    merged = embedder()
    prepare(merged, LORA)
    adapters.merge(merged)
    with pytest.raises(ModelError, match="no longer those of a folder"):
        prepare(merged, {"kind": "qlora"})


@pytest.mark.parametrize("backbone", ["meta-llama/", "openai-community/gpt2", "google-t5/"])
def test_bottlenecks_are_nothing_at_first_are_trained_and_saved(tmp_path, backbone):
    model = embedder(backbone)
    before = model.encode(TEXTS)
    found = prepare(model, {"kind": "bottleneck", "size": 3})
    same(model.encode(TEXTS), before)
    assert len(found.names) == 6 * 6 and all(".bottleneck." in name for name in found.names)
    model.train()
    model(tokens_of(model)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    shake(model)
    wanted = model.encode(TEXTS)
    assert np.abs(wanted - before).max() > 1e-3
    model.save_pretrained(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved")
    same(again.encode(TEXTS), wanted)
    same(pickle.loads(pickle.dumps(again)).encode(TEXTS), wanted)
    assert set(prepare(again, None, before={"kind": "bottleneck"}).names) == set(found.names)
    with pytest.raises(Exception, match="polyvec"):
        SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    with pytest.raises(ModelError, match="no other adapter comes on top"):
        prepare(model, LORA)


def test_all_layers_of_a_model_with_bottlenecks_are_those_after_them():
    model = embedder()
    prepare(model, {"kind": "bottleneck", "size": 3})
    shake(model)
    needs = frozenset({"all_layers"})
    states = model.backbone(tokens_of(model), needs=needs)
    inside = states.all_layers[-2]
    layer = model.backbone.model.layers[-2]
    seen = []
    handle = layer.register_forward_hook(lambda *args: seen.append(args[2]))
    model.backbone(tokens_of(model))
    handle.remove()
    flat = seen[0].flatten(0, 1)
    torch.testing.assert_close(inside[states.attention_mask_BT], flat)


def test_both_routes_of_an_embedder_are_trained_whole_or_not_at_all():
    query, document = embedder(), embedder("openai-community/gpt2")
    routes = {"query": query._parts(), "document": document._parts()}
    both = Embedder.from_parts(**{**document._parts().keywords(), "routes": routes})
    names = prepare(both, {"kind": "full"}).names
    inside = {name for name, _ in both.named_parameters()}
    assert set(names) == inside and len(names) > 100
    with pytest.raises(ModelError, match="take routes of their own is not supported"):
        prepare(both, LORA)
    with pytest.raises(ModelError, match="trains nothing"):
        prepare(both, {"kind": "frozen"})
