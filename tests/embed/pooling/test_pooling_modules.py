"""Poolings with weights or settings: by hand, padding, neighbours, precision, settings."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from polyvec.embed.backbone.states import SIDE_OUTPUTS, States
from polyvec.embed.pooling.attention import alignment, select_layers, uniformity
from polyvec.embed.pooling.modules import POOLING_MODULES
from polyvec.errors import CalibrationError, ModelError, SettingsError, ShapeError

D, H, E, V, K = 8, 2, 3, 20, 4  # state size, heads, experts, vocabulary, layers with embeddings
MASK_ID, SLOT_ID, BOS_ID = 17, 18, 19
HEAD = nn.Linear(D, V, bias=False).requires_grad_(False)
HEAD.weight.copy_(torch.randn(V, D, generator=torch.Generator().manual_seed(1)) / 2)
SMALL = {"num_latents": 3, "num_heads": 2, "head_size": 5}
CASES = {
    "latent_attn": ("latent_attn", {"hidden_size": D, "num_latents": 5, "num_heads": 2}),
    "trainable": ("trainable", {"hidden_size": D, **SMALL}),
    "trainable last token": ("trainable", {"hidden_size": D, "over": "last_token", **SMALL}),
    "trainable layers last": (
        "trainable",
        {
            "hidden_size": D,
            "over": "all_layers",
            "num_layers": K - 1,
            "layer_pooling": "last",
            **SMALL,
        },
    ),
    "trainable layers mean": (
        "trainable",
        {
            "hidden_size": D,
            "over": "all_layers",
            "num_layers": K - 1,
            "layer_pooling": "mean",
            **SMALL,
        },
    ),
    "lmort": ("lmort", {"hidden_size": D, "align_layer": 1, "uniform_layer": -1, "num_heads": 2}),
    "lmort last": (
        "lmort",
        {
            "hidden_size": D,
            "align_layer": 1,
            "uniform_layer": 3,
            "num_blocks": 1,
            "num_heads": 2,
            "pooling": "last",
            "stream": "align",
        },
    ),
    "introspector": ("introspector", {"hidden_size": D, "num_layers": 1, "num_heads": 2}),
    "router": ("route_weights", {"hidden_size": D, "num_layers": 2, "num_experts": E}),
    "router concat": (
        "route_weights",
        {"hidden_size": D, "num_layers": 2, "num_experts": E, "mode": "concat"},
    ),
    "router sum": (
        "route_weights",
        {"hidden_size": D, "num_layers": 2, "num_experts": E, "mode": "sum", "alpha": 0.5},
    ),
    "reba": ("reba", {"hidden_size": D}),
    "reba mean": ("reba", {"hidden_size": D, "pooling": "mean"}),
    "lexical max": ("lexical", {"vocab_size": V, "over": "max", "skip_first": True}),
    "lexical sum": (
        "lexical",
        {
            "vocab_size": V,
            "over": "sum",
            "skip_first": False,
            "text_only": True,
            "max_elements": 2 * V,
        },
    ),
    "lexical last": ("lexical", {"vocab_size": V, "over": "last", "top_k": 4}),
    "token_weights": (
        "token_weights",
        {"hidden_size": D, "vocab_size": V, "unused_ids": [SLOT_ID, MASK_ID]},
    ),
    "mask_token": ("mask_token", {"hidden_size": D, "token_id": MASK_ID}),
    "special_mean": ("special_mean", {"hidden_size": D, "token_ids": [SLOT_ID, MASK_ID]}),
    "layer": ("layer", {"hidden_size": D, "layer": -2, "pooling": "weighted_mean"}),
    "layer_concat": ("layer_concat", {"hidden_size": D, "layers": [0, 2], "pooling": "last"}),
    "decoder_start": ("decoder_start", {"hidden_size": D}),
    "generated": ("generated", {"hidden_size": D, "over": "mean", "num_tokens": 2}),
}


def build(case: str) -> nn.Module:
    name, settings = CASES[case]
    torch.manual_seed(0)
    module = POOLING_MODULES[name](**settings)
    if name == "introspector":  # begins with a matrix of zeros, and so with vectors of zeros
        nn.init.normal_(module.project.weight)
    return module


def one_text(length: int, seed: int) -> States:
    """A text of its own: [BOS] prompt ... [MASK] [SLOT]; BOS and the next token are not pooled."""
    random = torch.Generator().manual_seed(seed)
    layers = [torch.randn(1, length, D, generator=random) for _ in range(K)]
    ids = torch.randint(0, 15, (1, length), generator=random)
    ids[0, 0], ids[0, -2], ids[0, -1] = BOS_ID, MASK_ID, SLOT_ID
    place = torch.arange(length)[None]
    scores = torch.randn(K - 1, 1, H, length, length, generator=random)
    causal = torch.ones(length, length).tril().bool()
    router = torch.randn(2, 1, length, E, generator=random)
    return States(
        last_BTD=layers[-1],
        attention_mask_BT=torch.ones(1, length, dtype=torch.bool),
        pooling_mask_BT=place >= 2,
        text_mask_BT=(place >= 2) & (place < length - 2),
        ids_BT=ids,
        all_layers=tuple(layers),
        attentions=tuple(scores.masked_fill(~causal, float("-inf")).softmax(-1)),
        router=tuple(router.softmax(-1)),
        router_logits=tuple(router),
        lm_head=HEAD,
        decoder_start=torch.randn(1, D, generator=random),
        generate=written([layers[0][:, :2]]),
    )


def written(answers: list[torch.Tensor]):
    """A stand-in for generation: these states, all of them real."""

    def generate(num_tokens: int):
        real = torch.ones(len(answers), num_tokens, dtype=torch.bool)
        return torch.cat(answers)[:, :num_tokens], real

    return generate


def padded(states: States, left: int, right: int, junk: float = float("nan")) -> States:
    """The text with padding beside it, full of junk and of ids that mean something."""

    def pad(x, value):
        room = torch.full((1, left + x.shape[1] + right, *x.shape[2:]), value, dtype=x.dtype)
        room[:, left : left + x.shape[1]] = x
        return room

    def pad_both(attention):  # [1, H, L, L]
        queries_padded = pad(attention.transpose(1, 2), junk)
        return pad(queries_padded.transpose(1, 3), junk).permute(0, 2, 3, 1)

    return dataclasses.replace(
        states,
        last_BTD=pad(states.last_BTD, junk),
        attention_mask_BT=pad(states.attention_mask_BT, False),
        pooling_mask_BT=pad(states.pooling_mask_BT, False),
        text_mask_BT=pad(states.text_mask_BT, False),
        ids_BT=pad(states.ids_BT, MASK_ID),
        all_layers=tuple(pad(x, junk) for x in states.all_layers),
        attentions=tuple(pad_both(x) for x in states.attentions),
        router=tuple(pad(x, junk) for x in states.router),
        router_logits=tuple(pad(x, junk) for x in states.router_logits),
    )


def joined(texts: list[States]) -> States:
    fields = {}
    for field in dataclasses.fields(States):
        values = [getattr(text, field.name) for text in texts]
        if isinstance(values[0], tuple):
            fields[field.name] = tuple(torch.cat(x) for x in zip(*values, strict=True))
        elif isinstance(values[0], torch.Tensor):
            fields[field.name] = torch.cat(values)
    answers = [text.generate(2)[0] for text in texts]
    return States(**fields, lm_head=HEAD, generate=written(answers))


TEXTS = [one_text(length, seed) for seed, length in enumerate((7, 6, 9))]


def batch(side: str, extra: int = 2, junk: float = float("nan")) -> States:
    longest = 9 + extra
    room = [longest - text.ids_BT.shape[1] for text in TEXTS]
    return joined(
        [
            padded(text, *((n, 0) if side == "left" else (0, n)), junk)
            for text, n in zip(TEXTS, room, strict=True)
        ]
    )


def changed(states: States, **values) -> States:
    return dataclasses.replace(states, **values)


def test_every_module_has_a_case():
    assert {name for name, _ in CASES.values()} == set(POOLING_MODULES)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_padding_and_neighbours_change_nothing(case, side, junk):
    module = build(case)
    alone = torch.cat([module(text) for text in TEXTS])
    assert alone.shape == (3, module.out_features)
    assert alone.abs().sum(dim=1).min() > 0
    assert_close(module(batch(side, junk=junk)), alone)


# Softmax over a single key is 1: what only enters the weights gets no gradient there.
TRAINED = [case for case in CASES if case != "trainable last token"]


@pytest.mark.parametrize("case", [case for case in TRAINED if list(build(case).parameters())])
def test_gradients_are_finite_beside_padding_that_is_not(case):
    module = build(case)
    out = module(batch("left"))
    (out * torch.randn(out.shape)).sum().backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("case", sorted(set(CASES) - {"router", "decoder_start", "generated"}))
def test_gradients_into_real_states_are_finite(case):
    states = batch("right")
    layers = tuple(x.clone().requires_grad_() for x in states.all_layers)
    states = changed(states, last_BTD=layers[-1], all_layers=layers)
    out = build(case)(states)
    out.sum().backward()
    grads = [x.grad for x in layers if x.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)


@pytest.mark.equality
@pytest.mark.parametrize("case", CASES)
def test_settings_rebuild_the_module(case):
    module = build(case)
    settings = json.loads(json.dumps(module.settings()))
    rebuilt = type(module)(**settings)
    rebuilt.load_state_dict(module.state_dict())
    assert_close(rebuilt(TEXTS[0]), module(TEXTS[0]), rtol=0, atol=0)
    assert CASES[case][1].items() <= settings.items()


@pytest.mark.equality
@pytest.mark.parametrize("case", CASES)
def test_half_precision_states_are_computed_in_float32(case):
    module = build(case).to(torch.bfloat16)
    assert all(weight.dtype == torch.float32 for weight in module.parameters())
    text = TEXTS[0]
    half = tuple(x.bfloat16() for x in text.all_layers)
    in_half = changed(
        text, last_BTD=half[-1], all_layers=half, lm_head=lambda x: HEAD(x.float()).to(x.dtype)
    )
    out = module(in_half)
    assert out.dtype == torch.bfloat16
    widened = tuple(x.float() for x in half)
    exact = changed(text, last_BTD=widened[-1], all_layers=widened)
    if "lexical" in case:  # the head itself answers in bfloat16
        exact = changed(exact, lm_head=lambda x: HEAD(x).bfloat16().float())
    assert_close(out, module(exact).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_missing_side_output_is_named(case):
    module = build(case)
    assert module.needs <= set(SIDE_OUTPUTS)
    bare = changed(TEXTS[0], **dict.fromkeys(set(SIDE_OUTPUTS) - module.needs))
    assert_close(module(bare), module(TEXTS[0]))  # what is not named is not read
    for output in module.needs:
        with pytest.raises(ModelError, match=f"needs {output}"):
            module(changed(TEXTS[0], **{output: None}))


@pytest.mark.parametrize("case", CASES)
def test_wrong_shapes_are_refused(case):
    module, text = build(case), TEXTS[0]
    nothing = torch.zeros_like(text.pooling_mask_BT)
    with pytest.raises(ShapeError, match="no token to pool"):
        module(changed(text, pooling_mask_BT=nothing))
    with pytest.raises(ShapeError, match="masks and ids"):
        module(changed(text, pooling_mask_BT=text.pooling_mask_BT[:, 1:]))
    if module.hidden_size:
        with pytest.raises(ShapeError, match="states of size 8, got 4"):
            module(changed(text, last_BTD=text.last_BTD[..., :4]))


def masked_mean(states: States) -> np.ndarray:
    return np.stack([text.last_BTD[0, 2:].mean(0).numpy() for text in TEXTS])


def test_latent_attention_with_zero_outputs_is_the_mean():
    module = build("latent_attn")
    states = batch("left")
    assert not np.allclose(module(states).detach(), masked_mean(states), atol=1e-3)
    for linear in (module.attention.to_out, module.feed.down):
        nn.init.zeros_(linear.weight)
    nn.init.zeros_(module.feed.down.bias)
    np.testing.assert_allclose(module(states).detach(), masked_mean(states), rtol=1e-5, atol=1e-6)


def test_latent_attention_is_what_torch_computes():
    """Against torch's own multi-head attention with the same weights; a head is D / heads."""
    torch.manual_seed(0)
    module = POOLING_MODULES["latent_attn"](D, num_latents=5, num_heads=2, head_size=D // 2)
    peer = nn.MultiheadAttention(D, 2, bias=False, batch_first=True)
    ours = module.attention
    rows = [x.weight for x in (ours.to_query, ours.to_key, ours.to_value)]
    peer.load_state_dict({"in_proj_weight": torch.cat(rows), "out_proj.weight": ours.to_out.weight})
    text = TEXTS[0].last_BTD
    keys = module.norm_latents(module.latents_ND)[None]
    text = text + peer(module.norm_states(text), keys, keys)[0]
    value, gate = module.feed.up(module.norm_feed(text)).chunk(2, -1)
    text = text + module.feed.down(value * nn.functional.gelu(gate))
    assert_close(module(TEXTS[0]), text[:, 2:].mean(1))


def test_latent_attention_has_the_sizes_of_nv_embed():
    module = POOLING_MODULES["latent_attn"](D)
    assert module.latents_ND.shape == (512, D)
    assert module.attention.to_query.weight.shape == (8 * D, D)  # 8 heads as wide as the states


@pytest.mark.parametrize("case", ["trainable layers last", "trainable layers mean"])
def test_the_order_of_layers_matters_through_their_embeddings(case):
    module, text = build(case), TEXTS[0]
    turned = changed(text, all_layers=(text.all_layers[0], *text.all_layers[:0:-1]))
    assert (module(turned) - module(text)).abs().max() > 1e-4
    nn.init.zeros_(module.layers_LD)
    assert_close(module(turned), module(text))


def test_trainable_pooling_over_one_key_is_its_value():
    """One pooled token: softmax over one key is 1, whatever the queries are."""
    module, text = build("trainable"), TEXTS[0]
    only = torch.zeros_like(text.pooling_mask_BT)
    only[0, 3] = True
    value = module.norm_keys(text.last_BTD[:, 3])
    out = module.latents_ND + module.attention.to_out(module.attention.to_value(value))
    out = (out + module.feed(module.norm_feed(out))).mean(0, keepdim=True)
    assert_close(module(changed(text, pooling_mask_BT=only)), out)
    last = torch.arange(7)[None] <= 3
    assert_close(build("trainable last token")(changed(text, pooling_mask_BT=last)), out)


@pytest.mark.parametrize(
    "settings",
    [
        {"over": "last_layer", "num_layers": 4},
        {"over": "last_layer", "layer_pooling": "mean"},
        {"over": "last_token", "num_layers": 4},
        {"over": "all_layers", "layer_pooling": "mean"},
        {"over": "all_layers", "num_layers": 4},
        {"over": "all_layers", "num_layers": 4, "layer_pooling": "first"},
        {"over": "layers"},
        {"num_latents": 0},
        {"num_heads": 0},
        {"head_size": 0},
    ],
)
def test_trainable_pooling_settings_that_cannot_be(settings):
    with pytest.raises(SettingsError):
        POOLING_MODULES["trainable"](D, **{**SMALL, **settings})


def test_trainable_pooling_of_another_number_of_layers():
    text = TEXTS[0]
    with pytest.raises(ShapeError, match="expects 3 layers, got 2"):
        build("trainable layers last")(changed(text, all_layers=text.all_layers[1:]))


@pytest.mark.equality
@pytest.mark.parametrize("case", ["lmort", "lmort last"])
def test_lmort_reads_both_layers_in_both_directions(case):
    module, text = build(case), TEXTS[0]
    for layer, read in ((0, False), (1, True), (2, False), (3, True)):
        layers = [x.clone() for x in text.all_layers]
        layers[layer][0, 1] += torch.arange(D)  # a token that is seen, not pooled
        moved = changed(text, last_BTD=layers[-1], all_layers=tuple(layers))
        assert (not torch.equal(module(moved), module(text))) == read, layer
    # An early token is pooled alone; a later one, seen, still moves it.
    early = changed(text, pooling_mask_BT=torch.arange(7)[None] == 2)
    layers = [x.clone() for x in text.all_layers]
    layers[1][0, 5] += torch.arange(D)
    moved = changed(early, all_layers=tuple(layers))
    assert not torch.equal(module(moved), module(early))


def test_alignment_and_uniformity_by_hand():
    right, up, left = [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]
    texts = torch.tensor([right, up, left])
    assert_close(alignment(texts, texts * 5), torch.tensor(0.0))
    assert_close(alignment(texts[:1], torch.tensor([up])), torch.tensor(2.0))
    # Squared distances of the three pairs are 2, 4 and 2.
    by_hand = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert_close(uniformity(texts), torch.tensor(by_hand))
    assert_close(uniformity(texts[:1].expand(4, 2)), torch.tensor(0.0))


def test_select_layers_finds_what_was_planted():
    torch.manual_seed(0)
    texts = torch.randn(4, 30, 16)
    texts[1] = texts[1, :1] + 0.3 * texts[1]  # all in one corner
    texts[3, :, 1:] *= 0.5  # along one axis
    noise = torch.tensor([0.5, 0.5, 1.0, 0.01])[:, None, None]
    aligned, uniform = select_layers(texts, texts + noise * torch.randn(4, 30, 16))
    spread = [float(uniformity(layer)) for layer in texts]
    assert (aligned, uniform) == (3, int(np.argmin(spread))) and uniform in (0, 2)
    with pytest.raises(ShapeError, match="select_layers"):
        select_layers(texts, texts[:2])
    with pytest.raises(ShapeError, match="2 or more"):
        select_layers(texts[:, :1], texts[:, :1])


def test_router_weights_are_the_last_pooled_tokens_softmax():
    out = build("router")(batch("right"))
    for row, text in zip(out, TEXTS, strict=True):
        assert_close(row, torch.cat([layer[0, -1] for layer in text.router]))
    assert_close(out.view(3, 2, E).sum(-1), torch.ones(3, 2))
    short = changed(TEXTS[0], pooling_mask_BT=torch.arange(7)[None] == 3)
    assert_close(build("router")(short)[0, :E], TEXTS[0].router[0][0, 3])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 2.0])
def test_router_sum_is_the_sum_of_similarities(alpha):
    module = POOLING_MODULES["route_weights"](D, 2, E, "sum", alpha)
    out = module(batch("left"))
    state = torch.cat([text.last_BTD[:, -1] for text in TEXTS])
    router = build("router")(batch("left"))
    cosines = [
        nn.functional.cosine_similarity(x[:, None], x[None], dim=-1) for x in (state, router)
    ]
    assert_close(out @ out.T, cosines[0] + alpha * cosines[1])


def test_router_concat_is_standardised_by_what_was_stored():
    module, states = build("router concat"), batch("left")
    raw = module(states)
    assert_close(raw[:, :D], torch.cat([text.last_BTD[:, -1] for text in TEXTS]))
    assert_close(raw[:, D:], build("router")(states))
    sample = torch.randn(50, module.out_features) * 3 + 1
    module.fit(sample)
    peer = (raw.numpy() - sample.numpy().mean(0)) / sample.numpy().std(0)
    np.testing.assert_allclose(module(states), peer, rtol=1e-4, atol=1e-5)
    assert_close(module(TEXTS[1]), module(states)[1:2])  # the batch is not the statistics
    rebuilt = build("router concat")
    rebuilt.load_state_dict(module.state_dict())
    assert_close(rebuilt(states), module(states))
    with pytest.raises(CalibrationError, match="already fitted"):
        module.fit(sample)


@pytest.mark.parametrize(("mode", "alpha"), [("router", None), ("concat", None), ("sum", 0.5)])
def test_router_logits_are_standardised_by_what_was_stored(mode, alpha):
    """As MoEE's code for OLMoE and Qwen, with stored statistics in place of the batch's."""
    module, states = POOLING_MODULES["route_weights"](D, 2, E, mode, alpha, "logits"), batch("left")
    with pytest.raises(CalibrationError, match="call fit with a sample"):
        module(states)
    with module.collect():
        sample = torch.cat([module(one_text(8, seed)) for seed in range(20)])
    logits = torch.cat([torch.cat([x[:, -1] for x in t.router_logits], -1) for t in TEXTS])
    raw = torch.cat([torch.cat([t.last_BTD[:, -1] for t in TEXTS]), logits], -1)
    raw = raw[:, -sample.shape[1] :]
    module.fit(sample)
    scores = ((raw - sample.mean(0)) / sample.std(0, correction=0)).numpy()
    if mode == "sum":
        parts = scores[:, :D], scores[:, D:]
        scores = np.hstack([x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts])
        scores[:, D:] *= 0.5**0.5
    np.testing.assert_allclose(module(states), scores, rtol=1e-4, atol=1e-5)
    assert_close(module(TEXTS[1]), module(states)[1:2])
    again = POOLING_MODULES["route_weights"](**module.settings())
    again.load_state_dict(module.state_dict())
    assert_close(again(states), module(states))


def test_router_settings_that_cannot_be():
    make = POOLING_MODULES["route_weights"]
    for mode, alpha in (("sum", None), ("sum", -1.0), ("concat", 1.0), ("router", 0.0)):
        with pytest.raises(SettingsError, match="alpha"):
            make(D, 2, E, mode, alpha)
    with pytest.raises(SettingsError, match="Did you mean 'concat'"):
        make(D, 2, E, "concatt")
    with pytest.raises(SettingsError, match="Did you mean 'logits'"):
        make(D, 2, E, weights="logit")
    with pytest.raises(SettingsError, match="nothing to fit"):
        make(D, 2, E).fit(torch.randn(3, 2 * E))
    with pytest.raises(ShapeError, match="expects 3 layers of 3 experts"):
        make(D, 3, E)(TEXTS[0])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_reba_is_what_numpy_computes(pooling):
    """Token by token, straight from the formula."""
    module = POOLING_MODULES["reba"](D, pooling)
    for text, row in zip(TEXTS, module(batch("left")), strict=True):
        stacked = np.stack([layer[0].numpy() for layer in text.attentions])  # [K, H, L, L]
        largest = ((stacked + stacked.swapaxes(-1, -2)) / 2).max(axis=(0, 1))
        mixed = largest @ text.last_BTD[0].numpy() / largest.sum(1, keepdims=True)
        peer = mixed[-1] if pooling == "last" else mixed[2:].mean(0)
        np.testing.assert_allclose(row, peer, rtol=1e-5, atol=1e-6)


def test_reba_shows_early_tokens_what_comes_later():
    text = changed(TEXTS[0], pooling_mask_BT=torch.arange(7)[None] == 2)
    later = text.last_BTD.clone()
    later[0, 5] += 1
    module = build("reba")
    assert (module(changed(text, last_BTD=later)) - module(text)).abs().max() > 1e-3


def lexical_peer(text: States, over: str, first: int) -> np.ndarray:
    logits = text.last_BTD[0].numpy() @ HEAD.weight.numpy().T
    weights = np.log1p(np.maximum(logits, 0))
    pooled = weights[max(2, first) :]
    return {"max": pooled.max(0), "sum": pooled.sum(0), "last": pooled[-1]}[over]


@pytest.mark.parametrize("max_elements", [1, 3 * V, 10**9])
@pytest.mark.parametrize("over", ["max", "sum", "last"])
def test_lexical_is_what_numpy_computes_whatever_the_chunk(over, max_elements):
    skip = None if over == "last" else True
    module = POOLING_MODULES["lexical"](V, over, skip_first=skip, max_elements=max_elements)
    seen = []

    def head(states):
        logits = HEAD(states)
        seen.append(logits.numel())
        return logits

    out = module(changed(batch("left"), lm_head=head))
    peer = np.stack([lexical_peer(text, over, 1) for text in TEXTS])
    np.testing.assert_allclose(out, peer, rtol=1e-5, atol=1e-6)
    assert max(seen) <= max(V, max_elements)
    assert (out > 0).any() and (out >= 0).all()


@pytest.mark.parametrize("over", ["max", "sum"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_token_is_skipped_only_on_request(over, side):
    sink = changed(
        TEXTS[0], pooling_mask_BT=TEXTS[0].attention_mask_BT, last_BTD=TEXTS[0].last_BTD.clone()
    )
    sink.last_BTD[0, 0] = 1000 * HEAD.weight[5]
    states = padded(sink, *((3, 0) if side == "left" else (0, 3)))
    skipped = POOLING_MODULES["lexical"](V, over, skip_first=True)(states)
    kept = POOLING_MODULES["lexical"](V, over, skip_first=False)(states)
    assert kept[0, 5] - skipped[0, 5] > 5
    without = changed(sink, pooling_mask_BT=torch.arange(7)[None] >= 1)
    assert_close(POOLING_MODULES["lexical"](V, over, skip_first=False)(without), skipped)


def test_a_text_of_which_nothing_is_left_is_all_zeros():
    alone = changed(TEXTS[0], pooling_mask_BT=torch.arange(7)[None] == 0)
    out = POOLING_MODULES["lexical"](V, "max", skip_first=True)(alone)
    assert out.shape == (1, V) and not out.any()


def test_lexical_keeps_the_texts_own_entries_then_the_largest():
    states = batch("right")
    everything = POOLING_MODULES["lexical"](V, "max", skip_first=True)(states)
    own = POOLING_MODULES["lexical"](V, "max", text_only=True, skip_first=True)(states)
    top = POOLING_MODULES["lexical"](V, "max", 2, True, True)(states)
    for text, row, own_row, top_row in zip(TEXTS, everything, own, top, strict=True):
        ids = set(text.ids_BT[text.text_mask_BT].tolist())
        kept = torch.tensor([place in ids for place in range(V)])
        assert_close(own_row, torch.where(kept, row, 0))
        assert (top_row > 0).sum() == min(2, int((own_row > 0).sum()))
        assert_close(top_row.topk(2).values, own_row.topk(2).values)
        assert not (top_row * ~kept).any()


def test_lexical_gradients_pass_through_the_chunks():
    states = changed(TEXTS[2], last_BTD=TEXTS[2].last_BTD.clone().requires_grad_())
    grads = []
    for max_elements in (2 * V, 10**9):
        module = POOLING_MODULES["lexical"](V, "sum", skip_first=True, max_elements=max_elements)
        grads.append(torch.autograd.grad(module(states).sum(), states.last_BTD)[0])
    assert_close(*grads)
    assert grads[0].abs().max() > 0


def test_lexical_settings_that_cannot_be():
    make = POOLING_MODULES["lexical"]
    for over in ("max", "sum"):
        with pytest.raises(SettingsError, match="attention sink"):
            make(V, over)
    with pytest.raises(SettingsError, match="skip_first"):
        make(V, "last", skip_first=True)
    for settings in ({"top_k": 0}, {"top_k": V + 1}, {"max_elements": 0}):
        with pytest.raises(SettingsError):
            make(V, "last", **settings)
    with pytest.raises(SettingsError, match="'mean' is not known"):
        make(V, "mean", skip_first=True)
    with pytest.raises(ShapeError, match="vocabulary of 21"):
        make(V + 1, "last")(TEXTS[0])


def test_mask_token_by_hand():
    module = build("mask_token")
    out = module(batch("right"))
    assert_close(out, torch.cat([text.last_BTD[:, -2] for text in TEXTS]))
    ids = batch("right").ids_BT.clone()
    ids[1, :6] = 1
    with pytest.raises(ShapeError, match="text 1 of the batch has token 17 0 times"):
        module(changed(batch("right"), ids_BT=ids))
    ids[1, :2] = MASK_ID
    with pytest.raises(ShapeError, match="token 17 2 times"):
        module(changed(batch("right"), ids_BT=ids))


def test_special_mean_by_hand():
    text = changed(TEXTS[0], last_BTD=torch.zeros(1, 7, D))
    text.last_BTD[0, -1], text.last_BTD[0, -2] = 3.0, 1.0
    assert_close(build("special_mean")(text), torch.full((1, D), 2.0))
    assert_close(POOLING_MODULES["special_mean"](D, [SLOT_ID])(text), torch.full((1, D), 3.0))
    with pytest.raises(ShapeError, match=r"text 0 of the batch has none of \[16\]"):
        POOLING_MODULES["special_mean"](D, [16])(text)
    with pytest.raises(SettingsError):
        POOLING_MODULES["special_mean"](D, [])


def test_layers_are_counted_from_the_embeddings_or_the_end():
    text, make = TEXTS[0], POOLING_MODULES["layer"]
    assert_close(make(D, 0, "last")(text), text.all_layers[0][:, -1])
    assert_close(make(D, 2, "mean")(text), text.all_layers[2][:, 2:].mean(1))
    assert_close(make(D, -1, "max")(text), text.last_BTD[:, 2:].amax(1))
    assert_close(make(D, -4, "first")(text), text.all_layers[0][:, 2])
    # Positions count the prompt that is seen and not pooled: 3 .. 7 of 7.
    weights = torch.arange(3.0, 8.0)
    peer = (text.all_layers[2][0, 2:] * weights[:, None]).sum(0) / weights.sum()
    assert_close(make(D, -2, "weighted_mean")(text)[0], peer)
    for layer in (4, -5):
        with pytest.raises(SettingsError, match=r"0 \(word embeddings\) to 3"):
            make(D, layer)(text)
    with pytest.raises(SettingsError, match="'middle' is not known"):
        make(D, 0, "middle")


def test_layer_concat_keeps_the_order_given():
    text, make = TEXTS[0], POOLING_MODULES["layer_concat"]
    out = make(D, (-1, 0), "last")(text)
    assert_close(out, torch.cat([text.last_BTD[:, -1], text.all_layers[0][:, -1]], dim=1))
    with pytest.raises(SettingsError):
        make(D, [])
