"""What the papers' compressors must show: nuggets, contrast, right vectors, weights, held gists."""

import functools

import pytest
import torch
from torch.testing import assert_close

from polyvec.compress.soft.attending import Pooled
from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.contrast import conditioned, continuations
from polyvec.compress.soft.decoder import token_ids
from polyvec.compress.soft.reading import read
from polyvec.compress.soft.settings import CompressorSettings
from polyvec.compress.soft.stage import Compress
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import InputError
from polyvec.train.engine import joined
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share

TEXTS = [
    "The old man went down to the harbour to look for his boat, and found it gone.",
    "In the garden behind the house there were roses and two old apple trees.",
    "A cat sleeps in the sun while the children play with a red ball.",
    "She opened the letter and read that her brother would come home in spring.",
]


@functools.cache
def encoder():
    """Nothing here trains it."""
    return compose(EmbedderSettings("polyvec/nano-lm"))


def compressor(memory="slots", settings=None, **options):
    torch.manual_seed(0)
    return SoftCompressor(encoder(), CompressorSettings(memory, settings or {}, **options)).eval()


# ---- nuggets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["hidden", "kv"])
def test_nuggets_are_the_tokens_with_the_best_scores(carrier):
    model = compressor("nuggets", {"ratio": 4}, carrier=carrier)
    context = model.context(TEXTS[0])
    found = model.read([context])
    assert found.counts == [-(-len(context.ids) // 4)]  # ⌈n / ratio⌉
    ids = torch.tensor([[*model.reader().prefix, *context.ids.tolist()]])
    real = torch.ones_like(ids, dtype=torch.bool)
    whole = read(model.backbone, model.table(ids), real, keep=True)
    scores_T = model.memory.scorer(whole.states_BTD)[0, :, 0][len(model.reader().prefix) :]
    places = scores_T.topk(found.counts[0]).indices.sort().values + len(model.reader().prefix)
    if carrier == "hidden":
        assert_close(found.states_BMD[0], whole.states_BTD[0, places], atol=1e-5, rtol=1e-5)
    else:
        assert len(found.pairs) == model.backbone.num_layers
        for (keys, values), its in zip(found.pairs, whole.pairs(places[None]), strict=True):
            assert_close((keys, values), its, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("carrier", ["hidden", "kv"])
def test_the_scorer_of_nuggets_learns_from_what_is_read(carrier):
    model = compressor("nuggets", {"ratio": 4}, carrier=carrier)
    memory = model.read([model.context(TEXTS[0])])
    asked = model.asked("answer", question="What was gone?", target=" his boat")
    found = model.decoder.predict([asked], memory)
    (-model.decoder.log_probabilities(found).sum()).backward()
    gradients = [p.grad for p in model.memory.scorer.parameters()]
    assert all(bool((each != 0).any()) for each in gradients if each is not None)
    assert gradients[0] is not None


# ---- contrast -----------------------------------------------------------------------------------


def test_contrast_of_weight_0_is_what_the_decoder_writes_alone():
    model = compressor("soft", decoder="frozen")
    alone = model.generate([""] * 2, contexts=["", ""], max_tokens=6)
    start = ["", ""]
    found = continuations(model, start, "Happy!", "Sad.", weight=0.0, max_tokens=6)
    assert [each.strip().split("\n")[0] for each in found] == alone


def test_contrast_follows_the_wanted_prompt():
    """By hand: log p(x) + w log(p(x|a) / (p(x|a) + p(x|b))) of the first token, and of the next."""
    model = compressor("soft", decoder="frozen", prompts={"answer": "{memory}\n"})
    ids = [token_ids(model.decoder.tokenizer, "One day")]
    wanted, unwanted = "There was a king.", "The cat was red."

    def log_p(prompt, text):
        tokens = token_ids(model.decoder.tokenizer, text)
        return conditioned(model, prompt, [tokens[:0]]).log_probability([tokens])

    (found,) = continuations(model, ["One day"], wanted, unwanted, weight=3.0, max_tokens=1)
    plain, a, b = (conditioned(model, p, ids).begin()[0].log_softmax(-1)
                   for p in ("", wanted, unwanted))  # fmt: skip
    gap = log_p(wanted, "One day") + a - log_p(unwanted, "One day") - b
    best = (plain + 3.0 * torch.nn.functional.logsigmoid(gap)).argmax(-1)
    assert found == model.decoder.tokenizer.decode(best)
    with pytest.raises(InputError, match="memory 'soft'"):
        continuations(model, ["One"], compressor("slots", {"num": 2}), unwanted)


@pytest.mark.medium
def test_vectors_that_learned_a_prompt_steer_as_it_does():
    """PC: most of the divergence from the hard prompt goes, and the contrast prefers its words."""
    prompt = "Once upon a time there was a little princess who lived in a castle by the sea. "
    options = {"decoder": "frozen", "prompts": {"answer": "{memory}\n"}}
    model = compressor("soft", {"num": 8}, **options)
    stage = StageSettings("compress", adapter={"kind": "frozen"})
    task = Compress(model, stage, {"distil": 1.0}, prompt=prompt)
    rows = [TrainingRow(text) for text in TEXTS]
    optimiser = torch.optim.Adam(model.memory.parameters(), lr=2e-2)
    history = [step(task, rows, optimiser) for _ in range(40)]
    nothing = compressor("soft", {"num": 8}, **options)
    assert history[-1] < 0.4 * history[0]
    texts = [token_ids(model.decoder.tokenizer, f" {text}") for text in TEXTS]

    def likely(given):
        return conditioned(nothing, given, [each[:0] for each in texts]).log_probability(texts)

    hard, learned, untrained = likely(prompt), likely(model), likely(nothing)
    assert float((learned - hard).abs().mean()) < 0.5 * float((untrained - hard).abs().mean())


def step(task, rows, optimiser):
    """One step of training; the loss before it."""
    optimiser.zero_grad()
    work = task.work(rows, [Share(0, len(rows))], 0)
    results = [task.jobs[piece.job](task.compressor, piece.payload) for piece in work.pieces]
    loss = sum(task.loss(work.ordered(joined(work.pieces, results)), work.facts).values())
    loss.backward()
    optimiser.step()
    return float(loss.detach())


# ---- right vectors, weights, gists --------------------------------------------------------------


@pytest.mark.medium
def test_the_right_vector_tells_more_of_a_text_than_a_random_one():
    """xRAG: a frozen embedder and a frozen decoder, and a map between them."""
    minilm = compose(EmbedderSettings("sentence-transformers/all-MiniLM-L6-v2"))
    torch.manual_seed(0)
    model = SoftCompressor(minilm, CompressorSettings("vector", decoder="polyvec/nano-lm"))
    stage = StageSettings("compress", adapter={"kind": "frozen"})
    task = Compress(model, stage, {"autoencode": 1.0})
    rows = [TrainingRow(text) for text in TEXTS]
    optimiser = torch.optim.Adam(model.memory.parameters(), lr=3e-3)
    for _ in range(40):
        step(task, rows, optimiser)
    memories = model.compress(TEXTS)
    right, _ = model.score("autoencode", TEXTS, memories)
    wrong, _ = model.score("autoencode", TEXTS, memories[1:] + memories[:1])
    for text in TEXTS:
        vector = torch.randn(1, 384)
        model._vectors[text] = torch.nn.functional.normalize(vector)[0]
    random, _ = model.score("autoencode", TEXTS, model.compress(TEXTS))
    assert bool((right > wrong).all()) and bool((right > random).all())


def test_the_questions_word_has_the_largest_weight_of_all_tokens():
    """QGC, where W_q and W_k keep what they get: states that are alike have the largest product."""
    torch.manual_seed(0)
    pooled = Pooled(16, size=4, num_heads=2, review=0)
    states_TD = 8 * torch.nn.functional.normalize(torch.randn(20, 16), dim=-1)
    with torch.no_grad():
        for layer in (pooled.query, pooled.key):
            layer.weight.copy_(torch.eye(16))
        for place in range(20):
            _, weights_NG = pooled._windows(states_TD, states_TD[place], 4, 4)
            assert int(weights_NG.argmax()) == place


def test_weights_are_those_of_the_vectors():
    model = compressor("pooled", {"size": 4, "num_heads": 2, "review": 0}, query_aware=True)
    contexts = [model.context(text, "Where is the boat?") for text in TEXTS[:2]]
    encoder = model.reader()
    for context, weights_NG in zip(contexts, model.memory.weights(encoder, contexts), strict=True):
        length = len(context.ids)
        assert weights_NG.shape == (-(-length // 4), 4)
        assert_close(weights_NG.sum(1), torch.ones(len(weights_NG)))
        assert (weights_NG.flatten() > 0).tolist() == [
            n < length for n in range(weights_NG.numel())
        ]


def test_held_gists_hide_a_context_that_is_edited_behind_them():
    """The cache has another text's keys and values before the gists; the mask leaves them out."""
    model = compressor("slots", {"num": 2}, carrier="kv")
    with torch.no_grad():
        (context,) = [model.context(TEXTS[0])]
        memory = model.read([context])
        other = model.table(torch.tensor([model.context(TEXTS[1]).ids.tolist()]))
        real = torch.ones(other.shape[:2], dtype=torch.bool)
        edited = read(model.backbone, other, real, modes=model.decoder.modes, keep=True)
        places = torch.arange(other.shape[1])[None]
        pairs = tuple(
            (torch.cat([a, c], 2), torch.cat([b, d], 2))
            for (a, b), (c, d) in zip(edited.pairs(places), memory.pairs, strict=True)
        )
        prompt = model.table(torch.from_numpy(token_ids(model.tokenizer, " What was gone?"))[None])
        options = {"modes": model.decoder.modes, "start_B": memory.next_B}
        asked = torch.ones(prompt.shape[:2], dtype=torch.bool)

        def after(pairs, seen):
            return read(model.backbone, prompt, asked, past=(pairs, seen), **options).states_BTD

        held = after(memory.pairs, memory.real_BM)
        hidden = after(pairs, torch.cat([~real, memory.real_BM], 1))
        seen = after(pairs, torch.cat([real, memory.real_BM], 1))
    assert_close(hidden, held, atol=1e-5, rtol=1e-5)
    assert float((seen - held).abs().max()) > 1e-2
