"""Attention plans over 28 families of decoders: what is seen, in every layout, forward and back."""

import functools

import pytest
import torch
from decoders import DECODERS, LAYERS, VOCAB, build
from torch.testing import assert_close
from transformers import AttentionInterface, AutoModel, MambaConfig, T5Config

from polyvec.embed.backbone import attention
from polyvec.embed.backbone.attention import AttentionPlan, AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import ModelError, SettingsError

MODES = ("native", "causal", "bidirectional", "last-2", "prefix")
LENGTHS = (5, 9, 3, 7, 9)
PREFIX = 2


@functools.cache
def backbone(name: str, mode: str, layout: str = "auto") -> Backbone:
    return Backbone(build(name), 0, attention=mode, layout=layout)


def texts(seed: int = 3) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).numpy() for n in LENGTHS]


def batch_of(ids: list) -> TokenBatch:
    batch = TokenBatch.of_ids(ids)
    places = torch.cat([torch.arange(n) for n in batch.lengths])
    batch.segments_T[:] = (places >= PREFIX).numpy()
    return batch


def noise(name: str, scale: float) -> float:
    """What a state may move by rounding alone when other tokens of a batch change.

    A dense model runs the same kernels over the same shapes: nothing moves. Routed experts see
    groups of other sizes, and their matrix products pick other kernels.
    """
    return 1e-5 * scale if name in ("mixtral", "qwen3_moe", "gpt_oss") else 0


def states(model: Backbone, ids: list) -> list[torch.Tensor]:
    with torch.no_grad():
        out = model(batch_of(ids))
    return [out.last_BTD[i, : len(text)] for i, text in enumerate(ids)]


@pytest.fixture(params=DECODERS)
def name(request) -> str:
    return request.param


def test_it_runs_the_way_it_should(name):
    """Losing a faster or a safer way unnoticed would be a regression."""
    model = backbone(name, "bidirectional")
    assert model.mechanism == DECODERS[name][1]
    assert model.layout == ("packed" if model.mechanism == "plan" else "padded")


@pytest.mark.parametrize("mode", MODES)
def test_packed_equals_padded_equals_alone(name, mode):
    model, ids = backbone(name, mode), texts()
    together = states(model, ids)
    padded = states(backbone(name, mode, "padded"), ids)
    for text, row, other in zip(ids, together, padded, strict=True):
        scale = float(row.abs().max())
        assert_close(row, states(model, [text])[0], atol=1e-5 * scale, rtol=0)
        assert_close(row, other, atol=1e-5 * scale, rtol=0)


@pytest.mark.equality
@pytest.mark.parametrize("mode", MODES)
def test_a_later_token_moves_exactly_what_may_see_it(name, mode):
    model, ids = backbone(name, mode), texts()
    changed = [text.copy() for text in ids]
    changed[1][-1] = 3 + (changed[1][-1] - 2) % (VOCAB - 3)
    before, after = states(model, ids), states(model, changed)
    moved = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True)]
    allowed = noise(name, float(before[1].abs().max()))
    assert max(moved[:1] + moved[2:]) <= allowed  # other texts of the batch
    early = float((before[1][:-1] - after[1][:-1]).abs().max())
    if mode in ("bidirectional", "last-2"):
        assert early > 1e-4
    else:
        assert early <= allowed


def test_inside_the_prefix_early_tokens_see_late_ones(name):
    model, ids = backbone(name, "prefix"), texts()
    changed = [text.copy() for text in ids]
    changed[1][PREFIX - 1] = 3 + (changed[1][PREFIX - 1] - 2) % (VOCAB - 3)
    moved = states(model, ids)[1][0] - states(model, changed)[1][0]
    assert float(moved.abs().max()) > 1e-4


@pytest.mark.equality
def test_last_k_moves_no_layer_before(name):
    model, ids = backbone(name, "last-2"), texts()
    changed = [text.copy() for text in ids]
    changed[1][-1] = 3 + (changed[1][-1] - 2) % (VOCAB - 3)
    with torch.no_grad():
        layers = [model(batch_of(x), needs=frozenset({"all_layers"})) for x in (ids, changed)]
    moved = [
        float((a[1, :8] - b[1, :8]).abs().max())
        for a, b in zip(layers[0].all_layers, layers[1].all_layers, strict=True)
    ]
    assert len(moved) == LAYERS + 1
    before = max(float(state[1, :8].abs().max()) for state in layers[0].all_layers)
    assert max(moved[: LAYERS - 1]) <= noise(name, before)
    assert moved[LAYERS - 1] > 1e-4
    assert_close(layers[0].all_layers[-1], layers[0].last_BTD)


PLANNED = [name for name, (_, way) in DECODERS.items() if way == "plan"]


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_left_padding_equals_right_padding(name, mode):
    model, ids = backbone(name, mode).model, texts()
    found = []
    for left in (False, True):
        rows = torch.zeros(len(ids), max(LENGTHS), dtype=torch.long)
        real = torch.zeros_like(rows, dtype=torch.bool)
        for i, text in enumerate(ids):
            where = slice(-len(text), None) if left else slice(len(text))
            rows[i, where], real[i, where] = torch.from_numpy(text), True
        plan = AttentionPlan((mode,) * LAYERS, real_BT=real)
        with torch.no_grad():
            out = model(input_ids=rows, position_ids=plan.positions, plan=plan, use_cache=False)
        found.append(out.last_hidden_state[real])
    assert_close(found[0], found[1], atol=1e-5 * float(found[0].abs().max()), rtol=0)


def gradients(model: Backbone, *, checkpointing: bool = False) -> torch.Tensor:
    body = model.model
    body.zero_grad(set_to_none=True)
    body.train(checkpointing)
    if checkpointing:
        body.gradient_checkpointing_enable({"use_reentrant": False})
    out = model(batch_of(texts()))
    out.last_BTD[out.attention_mask_BT].pow(2).mean().backward()
    if checkpointing:
        body.gradient_checkpointing_disable()
        body.eval()
    return torch.cat([p.grad.flatten() for p in body.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", PLANNED)
def test_gradients_packed_padded_and_checkpointed_are_equal(name):
    packed = gradients(backbone(name, "last-2"))
    padded = gradients(backbone(name, "last-2", "padded"))
    scale = float(packed.abs().max())
    assert scale > 0
    assert_close(packed, padded, atol=1e-4 * scale, rtol=0)
    if name not in ("gpt2", "opt", "phi", "gpt_neox", "starcoder2"):  # these have dropout
        again = gradients(backbone(name, "last-2"), checkpointing=True)
        assert_close(packed, again, atol=1e-5 * scale, rtol=0)


def test_a_lora_wrapped_model_takes_plans():
    peft = pytest.importorskip("peft")
    base = build("qwen3")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(base, config).eval()
    model = Backbone(wrapped, 0, attention="bidirectional")
    assert model.layout == "packed"
    together, plain = states(model, texts()), states(backbone("qwen3", "bidirectional"), texts())
    assert_close(together[0], states(model, texts()[:1])[0], atol=1e-4, rtol=0)
    assert float((together[0] - plain[0]).abs().max()) > 1e-3  # the adapter is in


def test_the_mode_switches_for_a_call():
    """GritLM: bidirectional to embed, causal to generate, the same weights."""
    model, ids = backbone("mistral", "bidirectional"), texts()
    with torch.no_grad():
        causal = model(batch_of(ids), attention=AttentionSpec("causal")).last_BTD
    assert_close(causal[0, :5], states(backbone("mistral", "causal"), ids)[0])


@pytest.mark.equality
def test_blocked_parts_are_not_seen_but_through_others():
    """ChatRetriever's session mask: the response (2) sees the memory tokens (1), no session (0)."""
    spec = AttentionSpec("causal", blocked=((2, 0),))
    for layout in ("auto", "padded"):
        model = Backbone(build("llama"), 0, attention=spec, layout=layout)
        ids = texts()[1]
        batch = TokenBatch.of_ids([ids, ids[:6]])
        batch.segments_T[:9] = [0, 0, 0, 0, 1, 1, 2, 2, 2]
        one_layer = AttentionPlan(
            ("causal",),
            real_BT=torch.ones(1, 9, dtype=torch.bool),
            segments=torch.from_numpy(batch.segments_T[None, :9]),
            blocked=spec.blocked,
        ).mask("causal", None, 0, torch.device("cpu"))
        assert not one_layer[0, 0, 6:, :4].any()
        assert one_layer[0, 0, 6:, 4:6].all() and one_layer[0, 0, 4:6, :4].all()
        with torch.no_grad():
            before = model(batch).last_BTD[0]
            batch.ids_T[0] = 50
            after = model(batch).last_BTD[0]
        moved = (before - after).abs().amax(-1)
        assert bool((moved[:6] > 0).all()), layout
        assert bool((moved[6:] > 0).all()), layout  # through the memory tokens
        plan_direct = AttentionSpec("causal", blocked=((2, 0), (2, 1)))
        shut = Backbone(build("llama"), 0, attention=plan_direct, layout=layout)
        with torch.no_grad():
            first = shut(batch).last_BTD[0]
            batch.ids_T[0] = 51
            second = shut(batch).last_BTD[0]
        assert float((first[6:] - second[6:]).abs().max()) == 0


# ---- planted failures -------------------------------------------------------------------------


def plant(function):
    """Register another attention function; the honest one is put back."""
    AttentionInterface.register(attention.NAME, function)


@pytest.fixture
def honest():
    yield attention.plan_attention
    AttentionInterface.register(attention.NAME, attention.plan_attention)


def test_a_model_that_stays_causal_is_refused(honest):
    """SILENT row 1: told to be bidirectional, and causal without a word."""

    def deaf(module, query, key, value, mask, plan=None, **options):
        causal = AttentionPlan(("causal",) * LAYERS, plan.runs, plan.real_BT, masks={})
        return honest(module, query, key, value, mask, plan=causal, **options)

    plant(deaf)
    with pytest.raises(ModelError, match=r"LlamaModel.*'bidirectional'.*causal in all 4 layers"):
        Backbone(build("llama"), 0, attention="bidirectional")


def test_padding_that_is_seen_is_refused(honest):
    """SILENT row 2: BiLLM's zeroed mask shows padding to bidirectional layers."""

    def porous(module, query, key, value, mask, plan=None, **options):
        if plan.real_BT is not None:
            seen = torch.ones_like(plan.real_BT)
            plan = AttentionPlan(plan.modes, real_BT=seen, masks={})
        return honest(module, query, key, value, mask, plan=plan, **options)

    plant(porous)
    with pytest.raises(ModelError, match="padding or another text is seen"):
        Backbone(build("llama"), 0, attention="bidirectional", layout="padded")


def test_a_wrong_position_offset_is_noticed(monkeypatch):
    """SILENT row 4: XLM-R counts positions from its padding index on; 0 would be other rows."""
    import families

    from polyvec.embed.backbone import selection as probing

    assert Backbone(families.build("xlm_roberta"), 0).position_offset > 0
    monkeypatch.setattr(probing, "declared_offset", lambda model: 0)
    model = Backbone(families.build("xlm_roberta"), 0)
    assert model.layout == "padded" and "differs" in model.layout_reason


def test_left_padding_without_positions_is_another_vector():
    """SILENT row 5: what the plan's own positions are for; GPT-2 counts the padding otherwise."""
    model, text = backbone("gpt2", "causal").model, torch.from_numpy(texts()[0])
    rows = torch.cat([torch.zeros(4, dtype=torch.long), text])[None]
    plan = AttentionPlan(("causal",) * LAYERS, real_BT=rows != 0)
    with torch.no_grad():
        right = model(input_ids=rows, position_ids=plan.positions, plan=plan, use_cache=False)
        wrong = model(input_ids=rows, plan=plan, use_cache=False)
    alone = states(backbone("gpt2", "causal"), [texts()[0]])[0]
    assert_close(right.last_hidden_state[0, 4:], alone, atol=1e-5, rtol=1e-4)
    assert float((wrong.last_hidden_state[0, 4:] - alone).abs().max()) > 0.1


def test_windows_have_one_definition():
    """SILENT row 6: a window of w is the token itself and w - 1 before it, to either side."""
    real = torch.ones(1, 8, dtype=torch.bool)
    mask = lambda mode: AttentionPlan((mode,), real_BT=real).mask(mode, 3, 0, torch.device("cpu"))  # noqa: E731
    assert mask("causal")[0, 0, 5].int().tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert mask("bidirectional")[0, 0, 4].int().tolist() == [0, 0, 1, 1, 1, 1, 1, 0]


def test_a_call_without_a_plan_is_refused():
    with pytest.raises(ModelError, match="no attention plan"):
        backbone("llama", "native").model(input_ids=torch.tensor([[1, 5, 2]]))


@pytest.mark.parametrize("config", [
    MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
    T5Config(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
])  # fmt: skip
def test_what_cannot_be_converted_says_so(config):
    model = AutoModel.from_config(config).eval()
    wish = "bidirectional" if isinstance(config, MambaConfig) else "causal"
    with pytest.raises(ModelError, match=f"{type(model).__name__}.*cannot be made '{wish}'"):
        Backbone(model, 0, attention=wish)


def test_a_state_space_model_runs_as_it_is():
    config = MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)
    torch.manual_seed(0)
    model = Backbone(AutoModel.from_config(config).eval(), 0)
    assert str(model.verdict) == "causal in all 2 layers"
    together, alone = states(model, texts()), states(model, texts()[2:3])
    assert_close(together[2], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("wrong", ["bidirectonal", "last", "last-x", "from"])
def test_an_unknown_attention_names_the_known(wrong):
    with pytest.raises(SettingsError, match="Known: "):
        AttentionSpec.parse(wrong)


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ModelError, match="last-9: a model of 4 layers has last-1 to last-4"):
        Backbone(build("llama"), 0, attention="last-9")
