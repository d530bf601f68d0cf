"""Memories: what each kind keeps, on disk and in batches, and what is refused."""

import functools
import shutil

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import MambaConfig, MambaModel

from polyvec.compress.soft import attending
from polyvec.compress.soft.beacons import beacon_blocks, interleaved
from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.memory import Memory, joined
from polyvec.compress.soft.prefix import VectorPrefix
from polyvec.compress.soft.probe import check_memory
from polyvec.compress.soft.settings import CompressorSettings
from polyvec.compress.soft.slots import Slots
from polyvec.compress.soft.strided import strided_places
from polyvec.embed.backbone.attention import AttentionPlan
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import DataError, InputError, ModelError, SettingsError, ShapeError
from polyvec.nano import nano_lm_path

TEXTS = [
    "The old man went down to the harbour to look for his boat, and found it gone.",
    "A cat sleeps.",
    "In the garden behind the house there were roses and two old apple trees.",
]
KINDS = {
    "slots": {"num": 3},
    "slots, accumulated": {"num": 2, "segment": 6, "combine": "accumulate"},
    "slots, replaced": {"num": 2, "segment": 6, "combine": "replace"},
    "slots, independent": {"num": 2, "segment": 6, "combine": "independent"},
    "slots, by length": {"ratio": 4, "shared": True},
    "strided": {"stride": 4},
    "strided, segments": {"stride": 4, "segment": 6},
    "pooled": {"size": 4, "num_heads": 6},
    "digest": {"num": 3},
    "nuggets": {"ratio": 4},
    "blocks": {"num": 1, "size": 5},
    "soft": {"num": 3},
}


@functools.cache
def encoder():
    """Nothing here trains it."""
    return compose(EmbedderSettings("polyvec/nano-lm"))


def compressor(memory, settings=None, **options):
    torch.manual_seed(0)
    found = SoftCompressor(encoder(), CompressorSettings(memory, settings or {}, **options))
    return found.eval()


def made(name, **options):
    memory = name.partition(",")[0]
    if memory == "pooled":
        options = {"query_aware": True, **options}
    return compressor(memory, KINDS[name], **options)


@pytest.mark.parametrize("name", KINDS)
def test_a_memory_is_of_its_text_alone(name):
    model = made(name)
    queries = ["What?", "Who sleeps there?", "Which trees?"]
    with torch.no_grad():
        contexts = [model.context(t, q) for t, q in zip(TEXTS, queries, strict=True)]
        together = model.read(contexts)
        for row, context in enumerate(contexts):
            alone = model.read([context])
            count = together.counts[row]
            assert count == alone.counts[0]
            a, b = together.states_BMD[row], alone.states_BMD[0]
            assert_close(a[together.real_BM[row]], b[alone.real_BM[0]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["slots", "slots, accumulated", "slots, replaced", "strided", "nuggets"]
)
def test_keys_and_values_are_of_their_text_alone(name):
    model = made(name, carrier="kv")
    with torch.no_grad():
        contexts = [model.context(text) for text in TEXTS]
        together = model.read(contexts)
        for row, context in enumerate(contexts):
            alone = model.read([context])
            assert int(together.next_B[row]) == int(alone.next_B[0])
            for ours, its in zip(together.pairs, alone.pairs, strict=True):
                a = ours[0][row][:, together.real_BM[row]]
                assert_close(a, its[0][0][:, alone.real_BM[0]], atol=1e-4, rtol=1e-4)


def test_what_follows_gists_sees_nothing_before_them():
    backbone = encoder().backbone
    check_memory(backbone)
    with pytest.raises(ModelError, match=r"lets what follows see|other states"):
        _probe_without_mask(backbone)


def _probe_without_mask(backbone):
    """As a decoder would be whose plan lost its pairs of segments."""
    real = AttentionPlan._mask

    def lost(self, mode, window, run, device):
        object.__setattr__(self, "blocked", ())
        return real(self, mode, window, run, device)

    AttentionPlan._mask = lost
    try:
        check_memory(backbone)
    finally:
        AttentionPlan._mask = real


def test_the_gist_mask_is_the_papers_example():
    """abcGd: d sees G and itself."""
    plan = AttentionPlan(
        ("causal",),
        real_BT=torch.ones(1, 5, dtype=torch.bool),
        segments=torch.tensor([[0, 0, 0, 1, 2]]),
        blocked=((2, 0),),
    )
    mask = plan.mask("causal", None, 0, torch.device("cpu"))[0, 0].int()
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert mask.tolist() == expected


def test_held_gists_give_the_same_output_when_the_text_before_them_is_edited():
    model = compressor("slots", {"num": 2}, carrier="kv")
    (memory,) = model.compress([TEXTS[0]])
    before = model.score("answer", [" gone"], [memory], questions=["What was his boat?"])
    model.compress([TEXTS[0].replace("old man", "young girl")])
    after = model.score("answer", [" gone"], [memory], questions=["What was his boat?"])
    assert_close(before, after, atol=0, rtol=0)


def test_the_end_of_a_target_counts_or_not():
    model = compressor("slots", {"num": 2}, carrier="kv")
    memories, target = model.compress(TEXTS[:2]), " gone"
    count = len(model.asked("answer", target=target, end=False).target)
    asked = [model.asked("answer", target=target) for _ in memories]
    found = model.decoder.predict(asked, model.batch(memories))
    logits_NV = model.decoder.logits(found.states_ND)
    chosen_N = logits_NV.log_softmax(1).gather(1, found.targets_N[:, None])[:, 0]
    nats_BT = chosen_N.view(2, count + 1)
    with_end, _ = model.score("answer", [target] * 2, memories)
    without, _ = model.score("answer", [target] * 2, memories, end=False)
    assert_close(with_end, nats_BT.mean(1), atol=1e-4, rtol=1e-4)
    assert_close(without, nats_BT[:, :-1].mean(1), atol=1e-4, rtol=1e-4)


def test_beacons_hide_what_is_before_their_window():
    row, segments = interleaved(np.arange(5), 9, 2, 4)
    assert row.tolist() == [0, 1, 9, 2, 3, 9, 4, 9]
    assert segments.tolist() == [0, 0, 1, 0, 0, 1, 2, 3]
    assert set(beacon_blocks(2)) == {(2, 0), (3, 0)}
    model = compressor("beacons", {"ratio": 4, "window": 8}, carrier="kv")
    (memory,) = model.compress([TEXTS[0]])
    assert len(memory) == -(-memory.num_context // 4)


def test_a_stride_keeps_every_kth_state_and_the_last():
    assert strided_places(9, 4).tolist() == [3, 7, 8]
    model = made("strided")
    (memory,) = model.compress([TEXTS[0]], rate=8)
    assert len(memory) == -(-memory.num_context // 8)


def test_summaries_of_segments_accumulate_or_replace():
    (kept,) = made("slots, accumulated").compress([TEXTS[0]])
    (replaced,) = made("slots, replaced").compress([TEXTS[0]])
    assert len(kept) == 2 * -(-kept.num_context // 6)
    assert len(replaced) == 2


def test_names_stay_in_the_text_between_blocks():
    model = compressor("blocks", {"num": 1, "size": 5})
    text = "Call get_weather with city_name, which is the name of a town that has a station."
    context = model.context(text)
    raw = [model.tokenizer.decode(ids) for ids, stays in context.pieces if stays]
    assert [each.strip() for each in raw] == ["get_weather", "city_name"]
    (memory,) = model.compress([text])
    names = sum(len(ids) for ids, stays in context.pieces if stays)
    blocks = sum(-(-len(ids) // 5) for ids, stays in context.pieces if not stays)
    assert len(memory) == names + blocks
    table = model.table.weight[torch.from_numpy(context.pieces[1][0])]
    start = -(-len(context.pieces[0][0]) // 5)
    assert_close(memory.tensors["states"][start : start + len(table)], table.detach())


def test_an_ngram_is_the_mean_of_its_states_by_their_weights():
    torch.manual_seed(0)
    pooled = attending.Pooled(8, size=3, num_heads=2, review=0)
    states_TD, query_D = torch.randn(7, 8), torch.randn(8)
    with torch.no_grad():
        found_ND, weights_NG = pooled._windows(states_TD, query_D, 3, 3)
        q = pooled.query(query_D).view(2, 4)
        k = pooled.key(states_TD[3:6]).view(3, 2, 4)
        weights = ((k * q).sum(-1) / 2).softmax(0)
        expected = (weights[:, :, None] * states_TD[3:6].view(3, 2, 4)).sum(0).flatten()
    assert_close(found_ND[1], expected)
    assert_close(weights_NG[1], weights.mean(1))
    assert_close(found_ND[2], states_TD[6])  # a window of one token
    assert_close(weights_NG[2], torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.medium
def test_a_memory_on_disk_gives_the_same_logits(tmp_path):
    for carrier in ("hidden", "kv"):
        model = compressor("slots", {"num": 2}, carrier=carrier)
        (memory,) = model.compress([TEXTS[0]])
        memory.save(tmp_path / "memory.safetensors")
        model.save_pretrained(tmp_path / carrier)
        loaded = SoftCompressor.from_pretrained(tmp_path / carrier)
        again = Memory.load(tmp_path / "memory.safetensors")
        assert (again.rate, len(again), again.carrier) == (memory.rate, 2, carrier)
        targets = [" gone", " there"]
        for target in targets:
            ours = model.score("answer", [target], [memory], questions=["What?"])
            theirs = loaded.score("answer", [target], [again], questions=["What?"])
            assert_close(ours, theirs, atol=0, rtol=0)


def test_a_memory_of_another_model_is_refused(tmp_path):
    one = compressor("slots", {"num": 2})
    (memory,) = one.compress([TEXTS[0]])
    other = SoftCompressor(encoder(), CompressorSettings("slots", {"num": 2}))
    with pytest.raises(ModelError, match="made by another model"):
        other.generate(["What?"], [memory])
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(DataError, match="not a memory"):
        Memory.load(tmp_path / "text.safetensors")


def test_memories_are_joined_when_they_are_needed():
    """HD-Gist: a value's gists change nothing until they are joined."""
    model = compressor("slots", {"num": 2}, carrier="kv")
    argument, value = model.compress(["The unit of the temperature.", "celsius or fahrenheit"])
    alone = model.score("answer", [" celsius"], [argument], questions=["Which?"])
    both = model.score("answer", [" celsius"], [joined([argument, value])], questions=["Which?"])
    assert len(joined([argument, value])) == 4
    assert float((alone[0] - both[0]).abs()) > 1e-3


def test_one_vector_stands_for_one_document():
    minilm = compose(EmbedderSettings("sentence-transformers/all-MiniLM-L6-v2"))
    settings = CompressorSettings("vector", decoder="polyvec/nano-lm")
    model = SoftCompressor(minilm, settings)
    memories = model.compress(TEXTS)
    assert [len(each) for each in memories] == [1, 1, 1]
    assert memories[0].tensors["states"].shape == (1, 192)


def test_a_prefix_of_vectors_has_the_size_of_tokens():
    table = torch.randn(50, 8) * 0.3
    prefix = VectorPrefix(5, 8, num_tokens=3, like=table)
    out = prefix(torch.randn(2, 4, 5))
    assert out.shape == (2, 12, 8)
    assert_close(
        out.square().mean(-1).sqrt().mean(), table.square().mean().sqrt(), rtol=1e-3, atol=0
    )
    with pytest.raises(ShapeError, match=r"\[B, I, 5\]"):
        prefix(torch.randn(2, 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": "slot"}, "Did you mean 'slots'"),
        ({"memory": "slots", "memory_settings": {"number": 3}}, "Did you mean 'num'|not known"),
        ({"memory": "slots", "carrier": "kv", "connector": "mlp"}, "does nothing"),
        ({"memory": "slots", "carrier": "kv", "decoder": "polyvec/nano-lm"}, "needs a decoder"),
        ({"memory": "slots", "decoder_train": "lora"}, "of another model"),
        ({"memory": "slots", "prompts": {"answer": "{question}"}}, "must have one"),
        ({"memory": "slots", "prompts": {"answers": "{memory}"}}, "none of"),
        ({"memory": "slots", "memory_settings": {"ratio": 4}}, "shared = true"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        SoftCompressor(encoder(), CompressorSettings(**settings))


def test_contexts_without_gain_are_refused():
    model = compressor("slots", {"num": 8})
    with pytest.raises(InputError, match="empty"):
        model.compress([""])
    with pytest.raises(InputError, match="nothing is saved"):
        model.compress(["A cat."])
    with pytest.raises(InputError, match="either memories or contexts"):
        model.generate(["What?"])
    aware = made("pooled")
    with pytest.raises(InputError, match="pass query"):
        aware.compress([TEXTS[0]])


@pytest.mark.medium
def test_a_state_space_model_reads_and_a_decoder_answers(tmp_path):
    """RCC's second encoder: Mamba, which has no attention."""
    config = MambaConfig(
        vocab_size=8192, hidden_size=64, num_hidden_layers=2, state_size=4, expand=1, pad_token_id=0
    )
    torch.manual_seed(0)
    MambaModel(config).save_pretrained(tmp_path)
    for file in nano_lm_path().glob("*token*"):
        shutil.copy(file, tmp_path)
    mamba = compose(EmbedderSettings(str(tmp_path)))
    settings = CompressorSettings(
        "strided", {"stride": 4}, connector="linear", decoder="polyvec/nano-lm"
    )
    model = SoftCompressor(mamba, settings)
    one, two = model.compress(TEXTS[::2])
    assert one.tensors["states"].shape == (-(-one.num_context // 4), 192)
    assert len(model.generate(["Who?", "What?"], [one, two])) == 2
    with pytest.raises(ModelError, match="takes no attention plan"):
        SoftCompressor(mamba, CompressorSettings("strided", carrier="kv"))


@pytest.mark.medium
def test_an_encoder_decoder_attends_to_memories():
    """Gist-COCO: gists beside the states of T5's encoder, and as words."""
    t5 = compose(EmbedderSettings("polyvec/nano-t5"))
    prompts = {"answer": "{memory}Question: {question}", "autoencode": "{memory}Again."}
    prompts["continue"] = "{memory}"
    settings = CompressorSettings("slots", {"num": 3}, decoder="polyvec/nano-t5", prompts=prompts)
    model = SoftCompressor(t5, settings)
    memories = model.compress(TEXTS[::2])
    alone = [model.score("answer", ["boat"], [m], questions=["What?"])[0] for m in memories]
    both = model.score("answer", ["boat"] * 2, memories, questions=["What?"] * 2)[0]
    assert_close(both, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert float((alone[0] - alone[1]).abs()) > 0
    words = model.verbalise(memories[0], top=2)
    assert [len(row) for row in words] == [2, 2, 2]
    with pytest.raises(SettingsError, match=r"without \{task\}"):
        SoftCompressor(t5, CompressorSettings("slots", decoder="polyvec/nano-t5"))


def test_special_tokens_in_a_text_stay_characters():
    model = compressor("slots", {"num": 1})
    ids = model.context("a cat </s> here").ids
    assert model.tokenizer.eos_token_id not in ids
    assert isinstance(model.memory, Slots)
