"""DiffCSE's stage against transformers' BERT: what is masked, what is read, which loss."""

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import torch
import transformers as tf
from checkpoints import checkpoint
from families import FAMILIES, tokenizer
from test_language import loss_of
from torch.nn import functional as F
from toy_run import write_recipe

from polyvec import Embedder, load_recipe
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import SettingsError
from polyvec.train.predicting import mask_tokens
from polyvec.train.run import train_recipe
from polyvec.train.settings import StageSettings
from polyvec.train.tasks.generator import Edited
from polyvec.train.tasks.replaced import DiffCSE, Discriminator

TEXTS = ("the cat sat on the mat", "a dog looks", "nobody looks on the very long text of two")
ROWS = [TrainingRow(text) for text in TEXTS]
STAGE = StageSettings("diffcse", losses=({"kind": "info_nce", "temperature": 1.0},))


def bert(folder, seed=0, mask="of", drawn=True, **more):
    """A masked language model of two layers, without dropout, and the folder it is in."""
    config = FAMILIES["bert"][0]()
    config.update({"num_hidden_layers": 2, "hidden_dropout_prob": 0.0, **more})
    config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(seed)
    model = tf.BertForMaskedLM(config).eval()
    for each in model.parameters() if drawn else ():
        torch.nn.init.normal_(each, std=0.2)
    model.save_pretrained(folder)
    words = tokenizer()
    words.mask_token = mask
    words.save_pretrained(folder)
    return model


@pytest.fixture
def made(tmp_path):
    """An embedder, the generator as transformers reads it, and the task of both."""
    bert(tmp_path / "body")
    generator = bert(tmp_path / "generator", seed=1, hidden_size=16, intermediate_size=32)
    embedder = Embedder.from_pretrained(tmp_path / "body", pooling="first")
    task = DiffCSE(embedder, STAGE, generator=str(tmp_path / "generator"), weight=0.5)
    task.heads.train()
    return embedder, generator, task


def texts_of(task):
    """The rows' tokens, and the same with some masked, as the task masks them."""
    texts = [read.inputs[0] for read in task._read(ROWS, [(row.query,) for row in ROWS])][:3]
    masked = [
        mask_tokens(
            text.ids,
            task.generator._free(text),
            np.random.default_rng(place),
            probability=task.generator.probability,
            mask_id=task.generator.mask_id,
            num_rows=task.generator.num_rows,
            replace="bert",
        )
        for place, text in enumerate(texts)
    ]
    edited = task.generator.edited(texts, [np.random.default_rng(i) for i in range(3)], budget=16)
    return zip(texts, masked, edited, strict=True)


def most_likely(lm, ids):
    return lm(input_ids=torch.tensor(ids.astype(np.int64))[None]).logits[0].argmax(-1).numpy()


def test_the_generators_most_likely_tokens_replace_all_but_the_first(made):
    _, generator, task = made
    for text, (masked, _), edited in texts_of(task):
        best = most_likely(generator, masked)
        assert edited.tokens.ids.tolist() == [text.ids[0], *best[1:]]
        assert edited.replaced.tolist() == (edited.tokens.ids != text.ids).tolist()


def test_a_causal_model_is_its_own_generator_at_masked_places_only(tmp_path):
    shutil.copytree(checkpoint("meta-llama/"), tmp_path, dirs_exist_ok=True)
    tokenizer().save_pretrained(tmp_path)
    embedder = compose(EmbedderSettings(str(tmp_path)))
    task = DiffCSE(embedder, STAGE, mask="of", probability=0.5)
    lm = tf.AutoModelForCausalLM.from_pretrained(checkpoint("meta-llama/"))
    changed = 0
    for text, (masked, places), edited in texts_of(task):
        wanted = text.ids.copy()
        wanted[places] = most_likely(lm, masked)[places - 1]  # by the state before each
        assert edited.tokens.ids.tolist() == wanted.tolist()
        changed += int(edited.replaced.sum())
    assert changed > 3


def plain(model):
    """A copy with transformers' own attention."""
    found = copy.deepcopy(model)
    found.set_attn_implementation("eager")
    return found


def reference(embedder, task, edited):
    """The loss by transformers' own forward, text by text, the vector put behind the embeddings."""
    body = plain(embedder.backbone.model)
    discriminator = plain(task.discriminator.backbone.model)
    projector, head = copy.deepcopy(task.projector), copy.deepcopy(task.discriminator.head)
    words = embedder.tokenizer
    vectors = [
        body(input_ids=torch.tensor([words(row.query).input_ids])).last_hidden_state[:, 0]
        for row in ROWS * 2
    ]
    z = projector(torch.cat(vectors))
    cosine = F.cosine_similarity(z[:3, None], z[None, 3:], dim=-1)
    loss = F.cross_entropy(cosine, torch.arange(3))
    logits, labels = [], []
    for row, vector in zip(edited, z, strict=True):
        swap = discriminator.embeddings.register_forward_hook(
            lambda _, __, out, vector=vector: torch.cat([vector.view(1, 1, -1), out[:, 1:]], 1)
        )
        ids = torch.tensor(row.tokens.ids.astype(np.int64))[None]
        logits.append(head(discriminator(input_ids=ids).last_hidden_state[0]))
        labels.append(torch.tensor(row.replaced).long())
        swap.remove()
    loss = loss + 0.5 * F.cross_entropy(torch.cat(logits), torch.cat(labels))
    loss.backward()
    return float(loss.detach()), (body, discriminator, projector, head)


@pytest.mark.parametrize(("shares", "cached"), [(1, False), (2, False), (2, True)])
def test_loss_and_gradients_are_those_of_transformers(made, shares, cached):
    embedder, _, task = made
    task.budget = 16 if cached else 0
    edited = task._edited(ROWS)
    assert {bool(flag) for each in edited for flag in each.replaced} == {True, False}
    wanted, parts = reference(embedder, task, edited)
    assert loss_of(embedder, task, ROWS, shares, cached) == pytest.approx(wanted, abs=1e-5)
    own = (
        embedder.backbone.model,
        task.discriminator.backbone.model,
        task.projector,
        task.discriminator.head,
    )
    compared = 0
    for found, other in zip(own, parts, strict=True):
        for name, each in other.named_parameters():
            if each.grad is not None:
                grad = found.get_parameter(name).grad
                torch.testing.assert_close(grad, each.grad, rtol=1e-3, atol=1e-5, msg=name)
                compared += 1
    assert compared > 60


def test_packed_texts_each_read_their_own_vector():
    embedder = compose(EmbedderSettings(str(checkpoint("meta-llama/"))))
    assert embedder.backbone.layout == "packed"
    torch.manual_seed(0)
    discriminator = Discriminator(embedder.backbone)
    texts = [np.array([1, 5, 6, 7]), np.array([1, 8]), np.array([1, 9, 10])]
    vectors = torch.randn(3, 32)
    together = discriminator(vectors, TokenBatch.of_ids(texts)).split([4, 2, 3])
    for row, found in enumerate(together):
        alone = discriminator(vectors[[row]], TokenBatch.of_ids(texts[row : row + 1]))
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
        other = discriminator(vectors[[row]] + 1, TokenBatch.of_ids(texts[row : row + 1]))
        assert not torch.allclose(found, other, atol=1e-3)


@pytest.mark.medium
@pytest.mark.parametrize("discriminator", ["copy", "shared"])
def test_replaced_tokens_are_found_by_the_right_vectors_alone(tmp_path, discriminator):
    """Words of one sentence stand in for another's: only the vector tells which."""
    bert(tmp_path / "body", drawn=False, initializer_range=0.2)
    embedder = Embedder.from_pretrained(tmp_path / "body", pooling="first")
    task = DiffCSE(embedder, STAGE, projector="none", discriminator=discriminator)
    rows = [TrainingRow(text) for text in ("cat dog", "mat text", "cat text", "mat dog")]
    texts = [read.inputs[0] for read in task._read(rows, [()] * 4)]
    edited = []
    for row in range(4):
        for other in range(4):
            tokens = dataclasses.replace(texts[other])
            edited.append(Edited(tokens, texts[other].ids != texts[row].ids))
    owner = torch.arange(4).repeat_interleave(4)
    batch = TokenBatch.of(range(4), texts)
    weights = {id(each): each for each in (*embedder.parameters(), *task.heads.parameters())}
    optimizer = torch.optim.AdamW(weights.values(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        task.detection(embedder(batch)[owner], edited).backward()
        optimizer.step()
    with torch.no_grad():
        vectors = embedder(batch)
        right = float(task.detection(vectors[owner], edited))
        wrong = float(task.detection(vectors[[1, 2, 3, 0]][owner], edited))
    assert right < 0.2 and wrong > 0.5, (right, wrong)


@pytest.mark.medium
def test_a_run_saves_the_embedder_alone(tmp_path):
    path = write_recipe(
        tmp_path,
        'attention_dropout = 0.1\nmask = "<mask>"\nmax_steps = 3\nweight = 0.1\nedit = "masked"\n',
    )
    path.write_text(path.read_text("utf-8").replace('kind = "scl"', 'kind = "diffcse"'), "utf-8")
    found = train_recipe(load_recipe(path), "full", tmp_path / "run")
    untrained = load_recipe(path).build("full")
    assert sum(each.numel() for each in found.parameters()) == untrained.num_parameters
    again = Embedder.from_pretrained(tmp_path / "run" / "model")
    vectors = again.encode(["a cat", "rain"])
    np.testing.assert_allclose(vectors, found.encode(["a cat", "rain"]), atol=1e-6)
    assert not np.allclose(vectors, untrained.encode(["a cat", "rain"]), atol=1e-4)


def test_what_cannot_be(tmp_path):
    bert(tmp_path / "body")
    embedder = Embedder.from_pretrained(tmp_path / "body", pooling="first")
    words = tokenizer(bos=False, eos=False)
    words.add_tokens(["another"])
    words.save_pretrained(tmp_path / "other")
    for settings, says in (
        ({"weight": 0.0}, "weight is 0.0, expected more than 0"),
        ({"probability": 1.0}, "probability 1.0 is not between 0 and 1"),
        ({"generator": str(tmp_path / "other")}, "has another vocabulary than the embedder"),
    ):
        with pytest.raises(SettingsError, match=says):
            DiffCSE(embedder, STAGE, **settings)
    layers = dataclasses.replace(STAGE, matryoshka={"layers": True})
    with pytest.raises(SettingsError, match="takes one vector a text"):
        DiffCSE(embedder, layers)
