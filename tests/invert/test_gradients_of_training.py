"""Tokens of five-token batches from the gradients of real steps of polyvec.Trainer."""

import pytest
import torch
from transformers import TrainerCallback

import polyvec
from polyvec import Embedder
from polyvec.invert.gradients import batch_of_layer, tokens_of_table

ROW = {"anchor": "old house", "positive": "the road", "negative": "water"}
OPTIONS = {
    "nano-lm": ({"pooling": "mean"}, {}),
    "minilm": ({}, {"dropout": 0.0, "attention_dropout": 0.0}),
}


class Capture(TrainerCallback):
    """Keeps the gradients of a step by the names of the embedder's parameters."""

    def on_pre_optimizer_step(self, args, state, control, **given):
        named = given["model"].embedder.named_parameters()
        self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


def first_layer(model):
    """The name of the first query projection, and what it reads of each token at a place."""
    if hasattr(model, "embed_tokens"):
        normed = model.layers[0].input_layernorm(model.embed_tokens.weight).detach()
        return "layers.0.self_attn.q_proj.weight", lambda place: normed
    every = torch.arange(len(model.get_input_embeddings().weight))[:, None]

    @torch.no_grad()
    def inputs(place):
        return model.embeddings(input_ids=every, position_ids=torch.full_like(every, place))[:, 0]

    return "encoder.layer.0.attention.self.query.weight", inputs


@pytest.mark.medium
@pytest.mark.parametrize("name", OPTIONS)
def test_five_tokens_come_back_from_a_contrastive_step(name, minilm_folder, tmp_path):
    loading, training = OPTIONS[name]
    model = "polyvec/nano-lm" if name == "nano-lm" else minilm_folder
    embedder, seen = Embedder.from_pretrained(model, **loading), Capture()
    tokenizer = embedder.tokenizer
    special = set(tokenizer.all_special_ids)
    gold = {each for text in ROW.values() for each in tokenizer(text).input_ids} - special
    layer, inputs = first_layer(embedder.backbone.model)
    known = [inputs(place).clone() for place in range(6)]  # before the step changes them
    args = polyvec.TrainingArguments(
        tmp_path, max_steps=1, use_cpu=True, save_strategy="no", report_to="none", **training
    )
    polyvec.Trainer(embedder, args, [ROW], callbacks=[seen]).train()
    table = embedder.backbone.model.get_input_embeddings().weight
    (of_table,) = [each for each in seen.found.values() if each.shape == table.shape]
    of_layer = seen.found[f"backbone.model.{layer}"]
    placed = batch_of_layer(of_layer, known.__getitem__, 1 if name == "nano-lm" else 6)
    assert len(gold) == 5
    for found in (set(tokens_of_table(of_table)), {each for ids in placed for each in ids}):
        found -= special
        assert 2 * len(found & gold) / (len(found) + len(gold)) > 0.8
