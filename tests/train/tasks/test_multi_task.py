"""Vectors and tokens of one batch: GritLM's modes, ULLME's terms, ChatRetriever's mask."""

import numpy as np
import pytest
import torch
import transformers as tf
from checkpoints import checkpoint
from test_language import loss_of, padded

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import DataError, ModelError, SettingsError
from polyvec.train.preferences import PREFERENCES, alignment
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks import TASKS
from polyvec.train.tasks.contrastive import Contrastive
from polyvec.train.tasks.deliberation import Deliberation
from polyvec.train.tasks.language import NextToken
from polyvec.train.tasks.multi_task import GenerationAligned, MultiTask, SessionTuned

PAIRS = [
    TrainingRow("the cat sat", ("on the mat",), ("nobody looks", "a dog"), dataset="pairs"),
    TrainingRow("a dog", ("very long text of two",), ("passage", "vector"), dataset="pairs"),
    TrainingRow("query", ("vector of two",), ("a cat", "mat"), dataset="pairs"),
]
PROMPTS = [
    TrainingRow("looks on", ("nobody",), dataset="chat"),
    TrainingRow("text of", ("two",), dataset="chat"),
    TrainingRow("while", ("the dog",), dataset="chat"),
]
MIXED = [row for pair in zip(PAIRS, PROMPTS, strict=True) for row in pair]


def embedder(backbone="meta-llama/", attention="bidirectional", **more):
    return compose(EmbedderSettings(str(checkpoint(backbone)), attention=attention, **more))


def worked(model, task, rows):
    work = task.work(rows, [Share(0, len(rows))], 0)
    jobs = {}
    for piece in work.pieces:
        jobs.setdefault(piece.job, []).append(task.jobs[piece.job](model, piece.payload))
    return work.ordered({job: torch.cat(each) for job, each in jobs.items()}), work.facts


def test_kinds_are_built_from_a_stages_table():
    model = embedder()
    facts = {"embedder": model, "stage": StageSettings("multi_task")}
    found = TASKS.build("multi_task", {"weight": 0.5}, facts, where="[[stage]]")
    assert isinstance(found, MultiTask) and found.weight == 0.5
    with pytest.raises(SettingsError, match="Did you mean 'weight'"):
        TASKS.build("grl", {"weigth": 0.5}, facts, where="[[stage]]")


def test_both_losses_are_those_of_the_tasks_alone():
    """Bidirectional to embed, causal to write, with the same weights (GritLM)."""
    model = embedder()
    stage = StageSettings("multi_task")
    task = MultiTask(model, stage, generation=["chat"], weight=0.25)
    rows, facts = worked(model, task, MIXED)
    terms = task.loss(rows, facts)
    compared = Contrastive(model, stage)
    alone, alone_facts = worked(model, compared, PAIRS)
    wanted = compared.loss(alone, alone_facts)
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value)
    lm = tf.AutoModelForCausalLM.from_pretrained(checkpoint("meta-llama/"))
    texts = []
    for row in PROMPTS:
        words = model.tokenizer(f"{row.query} {row.positives[0]}", add_special_tokens=False)
        eos = [] if model.tokenizer.eos_token_id is None else [model.tokenizer.eos_token_id]
        prompt = model.tokenizer(row.query, add_special_tokens=False).input_ids
        texts.append((torch.tensor(words.input_ids + eos), len(prompt)))
    ids, mask, labels = padded([ids for ids, _ in texts])
    for label, (_, count) in zip(labels, texts, strict=True):
        label[:count] = -100
    found = float(lm(input_ids=ids, attention_mask=mask, labels=labels).loss)
    assert float(terms["generation"]) == pytest.approx(0.25 * found, rel=1e-5)


def test_writing_does_not_see_what_follows_and_embedding_does():
    model = embedder()
    task = NextToken(model, StageSettings("ntp"))
    row, other = (TrainingRow("the cat", (text,)) for text in ("sat mat", "sat dog"))
    for payload, same in (("predict", True), ("embed", False)):
        batches = [
            task.work([each], [Share(0, 1)], 0).pieces[0].payload.batch for each in (row, other)
        ]
        attention = task.attention if payload == "predict" else None
        one, two = (model.backbone(batch, attention=attention).last_BTD[0, :2] for batch in batches)
        assert torch.allclose(one, two) is same


def test_without_names_every_row_is_compared_and_predicted():
    model = embedder()
    task = MultiTask(model, StageSettings("multi_task"))
    rows, facts = worked(model, task, PAIRS)
    assert len(rows["log_likelihood"]) == 3 and len(rows["encode"]) == 12
    assert set(task.loss(rows, facts)) >= {"generation"}


@pytest.mark.parametrize("kind", ["multi_task", "grl", "csit", "deliberation"])
def test_cache_and_processes_change_nothing(kind):
    rows = MIXED if kind == "multi_task" else PAIRS
    found = []
    for budget, shares, cached in ((0, 1, False), (12, 1, True), (0, 3, True)):
        stage = StageSettings(kind, gradient_cache=budget)
        model = {"deliberation": debater, "csit": chat}.get(kind, embedder)()
        if kind == "multi_task":
            task = MultiTask(model, stage, generation=["chat"])
        elif kind == "grl":
            task = GenerationAligned(model, stage)
        else:
            task = (SessionTuned if kind == "csit" else Deliberation)(model, stage)
        loss = loss_of(model, task, rows, shares, cached)
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss, grads))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert set(grads) == set(found[0][1])
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], rtol=1e-3, atol=2e-5)


# ---- ULLME --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preference", [None, "dpo", "hinge", "ipo", "kto"])
def test_terms_of_grl_by_hand(preference):
    model = embedder()
    task = GenerationAligned(
        model, StageSettings("grl"), preference=preference, beta=0.2, weight=0.5, temperature=0.1
    )
    found, facts = worked(model, task, PAIRS)
    terms = task.loss(found, facts)
    logs = found["log_likelihood"].detach().numpy().reshape(3, 3, 2)
    sums, means = logs[..., 0], logs[..., 0] / logs[..., 1]
    chosen, rejected = sums[:, 0], sums[:, 1]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    wanted = {
        None: -sums[:, 0].sum() / logs[:, 0, 1].sum(),
        "dpo": -np.log(sigmoid(0.2 * (chosen - rejected))).mean(),
        "hinge": np.maximum(0, 1 - 0.2 * (chosen - rejected)).mean(),
        "ipo": ((means[:, 0] - means[:, 1] - 1 / 0.4) ** 2).mean(),
        "kto": np.concatenate([1 - sigmoid(0.2 * chosen), 1 - sigmoid(-0.2 * rejected)]).mean(),
    }
    assert float(terms["generation"]) == pytest.approx(0.5 * wanted[preference], rel=1e-5)
    vectors = found["encode"].detach().double().numpy()
    queries, documents = vectors[facts[0].queries], vectors[facts[0].documents].reshape(3, 3, -1)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    scores = np.einsum("be,bne->bn", unit(queries), unit(documents)) / 0.1
    softmax = lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)  # noqa: E731
    teacher, student = softmax(means.astype(float)), softmax(scores)
    kl = (teacher * np.log(teacher / student)).sum(1).mean()
    assert float(terms["alignment"]) == pytest.approx(kl, rel=1e-4)


def test_alignment_is_zero_where_both_agree_and_moves_the_scores_only():
    logs = torch.tensor([-1.0, -2.0, -3.0, -0.5, -4.0], requires_grad=True)
    owner = torch.tensor([0, 0, 0, 1, 1])
    scores = (logs.detach() + torch.tensor([5.0, 5.0, 5.0, 1.0, 1.0])).requires_grad_()
    assert float(alignment(scores, logs, owner, 2)) == pytest.approx(0, abs=1e-6)
    value = alignment(scores * 2, logs, owner, 2)
    value.backward()
    assert float(value) > 0.01 and logs.grad is None and scores.grad.abs().sum() > 0


def test_the_preferred_passage_of_several_positives_is_against_a_negative():
    model = embedder()
    task = GenerationAligned(model, StageSettings("grl"), alignment=0.0)
    rows = [
        TrainingRow("the cat", ("sat", "on"), ("dog",)),
        TrainingRow("a", ("mat",), ("two", "of")),
    ]
    found, facts = worked(model, task, rows)
    values = found["log_likelihood"][:, 0]
    wanted = PREFERENCES["dpo"](values[[0, 3]], values[[2, 4]], 0.1).mean()
    torch.testing.assert_close(task.loss(found, facts)["generation"], wanted)


def test_a_row_without_a_negative_is_an_error():
    model = embedder()
    rows = [TrainingRow("the cat", ("sat",), place="a.jsonl:3")]
    with pytest.raises(DataError, match=r"a\.jsonl:3: no negative, which this stage needs"):
        GenerationAligned(model, StageSettings("grl")).work(rows, [Share(0, 1)], 0)
    task = GenerationAligned(model, StageSettings("grl"), preference=None, alignment=0.0)
    assert len(task.work(rows, [Share(0, 1)], 0).pieces) == 2
    with pytest.raises(SettingsError, match="Did you mean 'dpo'"):
        GenerationAligned(model, StageSettings("grl"), preference="dppo")
    with pytest.raises(DataError, match="1 rows of a kind"):
        MultiTask(model, StageSettings("multi_task"), generation=["chat"]).work(
            [*PAIRS, PROMPTS[0]], [Share(0, 2), Share(2, 4)], 0
        )


# ---- ChatRetriever ------------------------------------------------------------------------------


def test_an_answer_hangs_on_the_session_through_its_special_tokens_only():
    model = chat()
    task = SessionTuned(model, StageSettings("csit"), smoothing=0.0)
    (piece,) = task.language.work([PAIRS[0]], [Share(0, 1)], 0).pieces
    batch = piece.payload.batch
    assert batch.segments_T.tolist().count(1) == 3
    special = model.tokenizer.convert_ids_to_tokens(batch.ids_T[batch.segments_T == 1])
    assert special == ["<|emb_0|>", "<|emb_1|>", "<|emb_2|>"]
    answer = torch.from_numpy(batch.segments_T == 2)

    def states(change=None, blocked=None):
        ids = batch.ids_T.copy()
        if change is not None:
            batch.ids_T[batch.segments_T == change] = 7
        spec = piece.payload.attention
        if blocked is not None:
            spec = type(spec)(spec.kind, 0, (*spec.blocked, *blocked))
        with torch.no_grad():
            found = model.backbone(batch, attention=spec).last_BTD[0][answer]
        batch.ids_T[:] = ids
        return found

    plain = states()
    assert not torch.allclose(states(change=0), plain, atol=1e-4), "through the special tokens"
    cut = ((2, 1),)
    torch.testing.assert_close(states(change=0, blocked=cut), states(blocked=cut))
    assert "on the mat" in model.tokenizer.decode(piece.payload.targets_N)


def test_smoothed_labels_are_transformers_own():
    from transformers.trainer_pt_utils import LabelSmoother

    model = chat()
    task = SessionTuned(model, StageSettings("csit"), smoothing=0.1)
    (piece,) = task.language.work(PAIRS, [Share(0, 3)], 0).pieces
    found = task.jobs["log_likelihood"](model, piece.payload)
    states = model.backbone(piece.payload.batch, attention=piece.payload.attention)
    flat = states.last_BTD[states.attention_mask_BT]
    logits = model.backbone.logits(flat[torch.from_numpy(piece.payload.places_N)])
    labels = torch.from_numpy(piece.payload.targets_N)
    wanted = LabelSmoother(epsilon=0.1)({"logits": logits[None]}, labels[None])
    torch.testing.assert_close(-found[:, 0].sum() / found[:, 1].sum(), wanted)


# ---- DEBATER ------------------------------------------------------------------------------------


def debater():
    prompts = {"prompts": {"web": "find"}, "default_prompt": "web"}
    return embedder(
        template="debater", pooling="last", attention="native", normalize=True, **prompts
    )


def chat():
    return embedder(template="chatretriever", pooling="last", attention="native")


def test_deliberation_by_hand_and_its_last_view_is_the_embedders_vector():
    model = debater()
    task = Deliberation(model, StageSettings("deliberation"), scale=30.0)
    found, facts = worked(model, task, PAIRS)
    vectors = found["encode"].detach()
    assert vectors.shape[1:] == (8, 32)
    documents = [text for row in PAIRS for text in (*row.positives, *row.negatives)]
    last = vectors[facts.documents, -1].numpy()
    np.testing.assert_allclose(last, model.encode_document(documents), atol=1e-5)
    queries = vectors[facts.queries, 0].numpy()
    np.testing.assert_allclose(queries, model.encode_query([r.query for r in PAIRS]), atol=1e-5)
    views = vectors[facts.documents].numpy()
    best = 30 * np.einsum("be,nme->bnm", queries, views).max(2)
    end = 30 * queries @ last.T
    best[1, 2] = end[1, 2] = -1e30  # that document is the query itself
    log_softmax = lambda x: x - np.log(np.exp(x).sum(1, keepdims=True))  # noqa: E731
    terms = task.loss(found, facts)
    hard = -log_softmax(best)[np.arange(3), [0, 3, 6]].mean()
    soft = -(np.exp(log_softmax(best)) * log_softmax(end)).sum(1).mean()
    assert float(terms["best_view"]) == pytest.approx(hard / 2, rel=1e-4)
    assert float(terms["last_view"]) == pytest.approx(soft / 2, rel=1e-4)


def test_a_chain_of_another_length_is_an_error():
    with pytest.raises(ModelError, match="a text has 8 pooled tokens, expected 1 of a query and 4"):
        worked(debater(), Deliberation(debater(), StageSettings("deliberation"), views=4), PAIRS)
    with pytest.raises(ModelError, match=r"needs .* pooling = 'last'"):
        Deliberation(embedder(), StageSettings("deliberation"))
