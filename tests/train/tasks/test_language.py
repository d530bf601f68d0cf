"""Masked and next tokens: which are predicted by which state, and transformers' own losses."""

import numpy as np
import pytest
import torch
import transformers as tf
from checkpoints import checkpoint
from families import FAMILIES, tokenizer

from polyvec import Embedder
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import DataError, ModelError, SettingsError
from polyvec.train import language_head
from polyvec.train.engine import step
from polyvec.train.predicting import split
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks.language import MaskedLanguageModel, MaskedNextToken, NextToken, reduced

TEXTS = ["the cat sat on the mat", "a dog looks", "nobody looks on the very long text of two"]
ROWS = [TrainingRow(text) for text in TEXTS]


def embedder(backbone="meta-llama/", **more) -> Embedder:
    return compose(EmbedderSettings(backbone=str(checkpoint(backbone)), **more))


def bert(folder) -> Embedder:
    torch.manual_seed(0)
    model = tf.BertForMaskedLM(FAMILIES["bert"][0]())
    for each in model.parameters():
        torch.nn.init.normal_(each, std=0.2)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Embedder.from_pretrained(folder, pooling="mean")


class Worker:
    """What the trainee does: a task's jobs on an embedder."""

    def __init__(self, model, task):
        self.model, self.task = model, task

    def __call__(self, pieces):
        return [self.task.jobs[piece.job](self.model, piece.payload) for piece in pieces]

    def parameters(self):
        return self.model.parameters()


def loss_of(model, task, rows=ROWS, shares=1, cached=False):
    """The loss of a batch that so many processes share, with its gradient."""
    size = -(-len(rows) // shares)
    cut = [Share(i, min(i + size, len(rows))) for i in range(0, len(rows), size)]
    works = [task.work(rows, cut, mine) for mine in range(len(cut))]

    def collect(found):
        """As each process orders its own results, and then takes those of all."""
        jobs = {}
        for job, results in found.items():
            sizes = works[0].sizes[job]
            parts = zip(works, results.split(sizes), strict=True)
            jobs[job] = torch.cat([work.ordered({job: part})[job] for work, part in parts])
        return jobs

    terms = step(
        Worker(model, task),
        [piece for work in works for piece in work.pieces],
        lambda found: task.loss(found, works[0].facts),
        cached=cached,
        collect=collect,
    )
    return float(sum(terms.values()))


def ids_of(model, text):
    found = model.text_tokenizer.encode(model.rendered_inputs([text], model.prompt_for())[0])
    return torch.from_numpy(found[0].ids).long()


def padded(texts):
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)
    return ids, mask, torch.where(mask.bool(), ids, -100)


@pytest.mark.parametrize("attention", ["native", "bidirectional"])
@pytest.mark.parametrize("backbone", ["meta-llama/", "openai-community/gpt2", "bigscience/bloom"])
def test_next_token_loss_is_the_models_own(backbone, attention):
    """Causal, whatever the embedder's attention is: GritLM's mode switch."""
    model = embedder(backbone, attention=attention)
    task = NextToken(model, StageSettings("ntp"))
    lm = tf.AutoModelForCausalLM.from_pretrained(checkpoint(backbone))
    ids, mask, labels = padded([ids_of(model, text) for text in TEXTS])
    wanted = float(lm(input_ids=ids, attention_mask=mask, labels=labels).loss)
    assert loss_of(model, task) == pytest.approx(wanted, abs=1e-6 * max(1, wanted))


def test_next_token_gradients_are_the_models_own():
    model = embedder()
    task = NextToken(model, StageSettings("ntp"))
    lm = tf.AutoModelForCausalLM.from_pretrained(checkpoint("meta-llama/"))
    ids, mask, labels = padded([ids_of(model, text) for text in TEXTS])
    lm(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    loss_of(model, task)
    for name, each in lm.model.named_parameters():
        found = model.backbone.model.get_parameter(name).grad
        torch.testing.assert_close(found, each.grad, rtol=1e-4, atol=1e-6)


def test_only_the_answer_of_a_prompt_is_predicted():
    model = embedder()
    task = NextToken(model, StageSettings("ntp"), answer=":", end=True)
    row = TrainingRow("the cat", positives=("sat on",))
    lm = tf.AutoModelForCausalLM.from_pretrained(checkpoint("meta-llama/"))
    words = tokenizer(bos=False, eos=False)
    prompt = words("the cat :", return_tensors="pt").input_ids
    answer = words("sat on </s>", return_tensors="pt").input_ids
    ids = torch.cat([prompt, answer], 1)
    labels = torch.cat([torch.full_like(prompt, -100), answer], 1)
    wanted = float(lm(input_ids=ids, labels=labels).loss)
    assert loss_of(model, task, [row]) == pytest.approx(wanted, abs=1e-6 * wanted)
    (piece,) = task.work([row], [Share(0, 1)], 0).pieces
    assert piece.payload.targets_N.tolist() == answer[0].tolist()
    assert piece.payload.places_N.tolist() == [2, 3, 4], "each from the token before it"


def test_a_template_stands_around_the_prompt():
    model = embedder(template="inbedder", prompts={"topic": "while"}, default_prompt="topic")
    task = NextToken(model, StageSettings("ntp"), template="own")
    row = TrainingRow("the cat", positives=("mat",), instruction="nobody")
    (piece,) = task.work([row], [Share(0, 1)], 0).pieces
    read = model.tokenizer.decode(piece.payload.batch.ids_T)
    assert "the cat" in read and "nobody" in read and read.endswith("mat </s>")
    assert model.tokenizer.decode(piece.payload.targets_N) == "mat </s>"
    table = {"query": "dog {text} looks"}
    chat = NextToken(model, StageSettings("ntp"), template=table)
    (piece,) = chat.work([row], [Share(0, 1)], 0).pieces
    assert model.tokenizer.decode(piece.payload.batch.ids_T) == "dog the cat looks mat </s>"
    stored = TrainingRow("the cat", positives=("mat",))
    (piece,) = task.work([stored], [Share(0, 1)], 0).pieces
    assert "while" in model.tokenizer.decode(piece.payload.batch.ids_T), "the stored prompt"
    with pytest.raises(DataError, match=r"a\.jsonl:2: template 'inbedder' .* needs 'instruction'"):
        bare = NextToken(embedder(), StageSettings("ntp"), template="inbedder")
        bare.work([TrainingRow("a", ("b",), place="a.jsonl:2")], [Share(0, 1)], 0)


@pytest.mark.parametrize("backbone", ["meta-llama/", "Qwen/"])
def test_a_masked_token_is_predicted_by_the_state_before_it(backbone):
    """LLM2Vec's label shift: transformers' causal loss under a mask that shows everything."""
    model = embedder(backbone, attention="bidirectional")
    task = MaskedNextToken(model, StageSettings("mntp", seed=3), probability=0.5, mask="query")
    work = task.work(ROWS, [Share(0, len(ROWS))], 0)
    batch = work.pieces[0].payload.batch
    order = work.order["log_likelihood"].tolist()
    lm = tf.AutoModelForCausalLM.from_pretrained(checkpoint(backbone), attn_implementation="eager")
    blank = model.tokenizer.convert_tokens_to_ids("query")  # in none of the texts
    sums, count = 0.0, 0
    for place, ids in zip(order, np.split(batch.ids_T, np.cumsum(batch.lengths)[:-1]), strict=True):
        original = ids_of(model, TEXTS[place])
        read = torch.from_numpy(ids).long()
        masked = read == blank
        labels = torch.where(read != original, original, -100)
        assert masked.equal(read != original) and not masked[0]
        if not masked.any():
            continue
        see_all = torch.zeros(1, 1, len(ids), len(ids))
        found = lm(input_ids=read[None], labels=labels[None], attention_mask=see_all).loss
        sums += float(found) * int(masked.sum())
        count += int(masked.sum())
    assert count > 3
    assert loss_of(model, task) == pytest.approx(sums / count, abs=1e-6 * sums / count)


def test_label_shift_by_hand():
    model = embedder(attention="bidirectional")
    task = MaskedNextToken(model, StageSettings("mntp"), probability=0.5, mask="query")
    (tokens,) = task.tokenizer.encode(
        model.rendered_inputs(["the cat sat on a mat"], model.prompt_for())[0]
    )
    found = task.masked(tokens, np.random.default_rng(1))
    where = np.flatnonzero(found.tokens.ids != tokens.ids)
    assert len(where) and where[0] > 0
    assert found.places.tolist() == (where - 1).tolist()
    assert found.targets.tolist() == tokens.ids[where].tolist()


@pytest.mark.parametrize("replace", ["bert", "mask"])
def test_masked_language_model_loss_is_berts_own(tmp_path, replace):
    model = bert(tmp_path)
    task = MaskedLanguageModel(model, StageSettings("mlm"), probability=0.4, replace=replace)
    work = task.work(ROWS, [Share(0, len(ROWS))], 0)
    payload = work.pieces[0].payload
    texts = np.split(payload.batch.ids_T, np.cumsum(payload.batch.lengths)[:-1])
    labels = np.full(len(payload.batch.ids_T), -100)
    labels[payload.places_N] = payload.targets_N
    rows = np.split(labels, np.cumsum(payload.batch.lengths)[:-1])
    ids, mask, _ = padded([torch.from_numpy(t).long() for t in texts])
    padded_labels = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(r) for r in rows], batch_first=True, padding_value=-100
    )
    lm = tf.BertForMaskedLM.from_pretrained(tmp_path)
    wanted = float(lm(input_ids=ids, attention_mask=mask, labels=padded_labels).loss)
    assert loss_of(model, task) == pytest.approx(wanted, abs=1e-6 * wanted)


def test_shares_of_bert_replacements_and_special_tokens(tmp_path):
    model = bert(tmp_path)
    task = MaskedLanguageModel(model, StageSettings("mlm"), probability=0.3)
    (tokens,) = model.text_tokenizer.encode(
        model.rendered_inputs(["the cat sat on a mat " * 6], model.prompt_for())[0]
    )
    kinds = np.zeros(3)
    for seed in range(300):
        found = task.masked(tokens, np.random.default_rng(seed))
        ids = found.tokens.ids[found.places]
        assert not np.isin(found.targets, task.specials).any()
        same, masked = ids == found.targets, ids == task.mask_id
        kinds += [masked.sum(), same.sum(), (~same & ~masked).sum()]
    np.testing.assert_allclose(kinds / kinds.sum(), [0.8, 0.1, 0.1], atol=0.02)
    assert kinds.sum() / (300 * (len(tokens) - 2)) == pytest.approx(0.3, abs=0.02)


def test_loss_and_gradient_depend_neither_on_cache_nor_on_processes(monkeypatch):
    monkeypatch.setattr(language_head, "NUM_LOGITS", 200)  # two rows of logits at a time
    found = []
    for budget, shares, cached in ((0, 1, False), (10, 1, True), (0, 2, False), (7, 3, True)):
        model = embedder(attention="bidirectional")
        stage = StageSettings("mntp", gradient_cache=budget)
        task = MaskedNextToken(model, stage, probability=0.5, mask="query")
        task.batch_number = 5
        loss = loss_of(model, task, shares=shares, cached=cached)
        found.append((loss, [each.grad for each in model.parameters() if each.grad is not None]))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for one, other in zip(grads, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_masks_depend_on_the_number_of_the_batch():
    model = embedder(attention="bidirectional")
    task = MaskedNextToken(model, StageSettings("mntp"), probability=0.5, mask="query")

    def ids():
        return task.work(ROWS, [Share(0, 3)], 0).pieces[0].payload.batch.ids_T.tolist()

    first = ids()
    assert ids() == first
    task.batch_number = 1
    assert ids() != first


def test_means_of_tokens_by_hand():
    found = torch.tensor([[-4.0, 2.0], [-3.0, 1.0], [-6.0, 3.0], [-1.0, 1.0]])
    assert float(reduced(found, "token")) == pytest.approx(14 / 7)
    assert float(reduced(found, "sample")) == pytest.approx((2 + 3 + 2 + 1) / 4)
    assert float(reduced(found, "sum")) == pytest.approx(14 / 4)
    assert float(reduced(found, "mixed", 2)) == pytest.approx((7 / 3 + 7 / 4) / 2)


def test_a_head_that_was_attached_is_saved_and_gives_the_checkpoints_logits(tmp_path):
    for backbone in ("meta-llama/", "openai-community/gpt2"):
        model = embedder(backbone)
        before = model.encode(TEXTS)
        language_head.attach_head(model)
        assert np.array_equal(model.encode(TEXTS), before)
        ids = ids_of(model, TEXTS[0])
        lm = tf.AutoModelForCausalLM.from_pretrained(checkpoint(backbone))
        states = lm.base_model(input_ids=ids[None]).last_hidden_state
        wanted = lm(input_ids=ids[None]).logits
        torch.testing.assert_close(model.backbone.logits(states), wanted)
        model.save_pretrained(tmp_path / "saved")
        again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(again(input_ids=ids[None]).logits, wanted)
        np.testing.assert_allclose(
            Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), before, atol=1e-6
        )


def test_what_cannot_be_learnt_is_an_error():
    causal = embedder()
    with pytest.raises(ModelError, match="is causal in all 6 layers; masked tokens are predicted"):
        MaskedNextToken(causal, StageSettings("mntp"))
    both = embedder(attention="bidirectional")
    with pytest.raises(SettingsError, match="mask 'no such' is no token"):
        MaskedNextToken(both, StageSettings("mntp"), mask="no such")
    with pytest.raises(SettingsError, match=r"probability 1\.5 is not between"):
        MaskedNextToken(both, StageSettings("mntp"), probability=1.5)
    task = NextToken(causal, StageSettings("ntp"))
    with pytest.raises(DataError, match=r"a\.jsonl:7: no token to predict"):
        task.work([TrainingRow("", place="a.jsonl:7")], [Share(0, 1)], 0)
    with pytest.raises(ModelError, match="T5EncoderModel is half of an encoder-decoder"):
        NextToken(embedder("google-t5/"), StageSettings("ntp"))
    merged = embedder()
    merged.backbone.model.name_or_path = merged.backbone.model.config.name_or_path = ""
    with pytest.raises(ModelError, match=r"language model's head \(unknown\) is not there"):
        NextToken(merged, StageSettings("ntp"))


def test_a_stages_limit_cuts_texts_and_leaves_the_embedders():
    model = embedder()
    task = NextToken(model, StageSettings("ntp", max_length=4))
    work = task.work(ROWS, [Share(0, 3)], 0)
    assert max(work.pieces[0].payload.batch.lengths) == 4
    assert model.max_seq_length > 4


def test_pieces_keep_to_their_budget_with_and_without_padding():
    assert split([9, 5, 4, 3], 0) == [(0, 4)]
    assert split([9, 5, 4, 3], 9) == [(0, 1), (1, 3), (3, 4)]
    assert split([9, 5, 4, 3], 10, padded=True) == [(0, 1), (1, 3), (3, 4)]
    assert split([5, 4, 3], 14, padded=True) == [(0, 2), (2, 3)]
    assert split([12, 1], 4) == [(0, 1), (1, 2)] and split([], 4) == []
    for backbone, factor in (("meta-llama/", 1), ("bigscience/bloom", 2)):
        task = NextToken(embedder(backbone), StageSettings("ntp"))
        rows = [TrainingRow("the cat sat on"), TrainingRow("the")]
        work = task.work(rows, [Share(0, 2)], 0)
        assert (work.num_tokens, work.num_computed_tokens) == (5, 5 if factor == 1 else 8)
