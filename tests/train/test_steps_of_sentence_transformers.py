"""Three steps of Trainer against three of sentence-transformers': same losses, same weights."""

import datasets
import numpy as np
import peft
import pytest
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from toy_run import PAIRS
from transformers import AutoModel, AutoTokenizer

from polyvec import Embedder, Trainer, TrainingArguments
from polyvec.embed.formats.sources import offline_folder

TRIPLETS = [
    {"anchor": a, "positive": b, "negative": PAIRS[i - 3][1][::-1]}
    for i, (a, b) in enumerate(PAIRS)
]
SCORED = [{"sentence1": a, "sentence2": b, "score": i / 8} for i, (a, b) in enumerate(PAIRS)]
TAUGHT = [{**row, "label": [0.5 + i / 20, i / 40]} for i, row in enumerate(TRIPLETS)]
MARGINS = [{**row, "label": [i / 8]} for i, row in enumerate(TRIPLETS)]
SYMMETRIC = {
    "kind": "info_nce",
    "directions": ["query_to_doc", "doc_to_query"],
    "partition_mode": "per_direction",
}
HARD = {"hardness_mode": "hard_negatives", "hardness_strength": 5.0}
CASES = {
    "mnrl": (TRIPLETS, lambda m: losses.MultipleNegativesRankingLoss(m), "info_nce", {}),
    "symmetric": (
        TRIPLETS,
        lambda m: losses.MultipleNegativesSymmetricRankingLoss(m),
        SYMMETRIC,
        {},
    ),
    "hardness": (
        TRIPLETS,
        lambda m: losses.MultipleNegativesRankingLoss(m, **HARD),
        {"kind": "info_nce", **HARD},
        {},
    ),
    "cached": (
        TRIPLETS,
        lambda m: losses.CachedMultipleNegativesRankingLoss(m, mini_batch_size=2),
        "info_nce",
        {"gradient_cache": 16},
    ),
    "gist": (
        TRIPLETS,
        lambda m: losses.GISTEmbedLoss(m, SentenceTransformer(str(offline_folder()), device="cpu")),
        {
            "kind": "info_nce",
            "temperature": 0.01,
            "guide": True,
            "false_negatives": "absolute",
            "directions": ["query_to_doc", "query_to_query", "positive_to_positive"],
        },
        {"guide": "all-MiniLM-L6-v2"},
    ),
    "matryoshka": (
        TRIPLETS,
        lambda m: losses.MatryoshkaLoss(m, losses.MultipleNegativesRankingLoss(m), [32, 16, 8]),
        "info_nce",
        {"matryoshka": {"dimensions": [32, 16, 8]}},
    ),
    "cosent": (SCORED, lambda m: losses.CoSENTLoss(m), None, {}),
    "angle": (SCORED, lambda m: losses.AnglELoss(m), "angle", {}),
    "triplet": (
        TRIPLETS,
        lambda m: losses.TripletLoss(m),
        {"kind": "triplet", "margin": 5.0},
        {},
    ),
    "margin_mse": (TAUGHT, lambda m: losses.MarginMSELoss(m), "margin_mse", {}),
    "margins": (MARGINS, lambda m: losses.MarginMSELoss(m), "margin_mse", {}),
    "kl": (
        TAUGHT,
        lambda m: losses.DistillKLDivLoss(m),
        {"kind": "kl_rank", "similarity": "dot", "times_squared_temperature": True},
        {},
    ),
}


def settings(folder):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def reported(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.fixture
def still(tiny_bert, tmp_path):
    """tiny_bert without dropout, which the two draw at other moments."""
    embedder = Embedder.from_pretrained(tiny_bert, device="cpu")
    for module in embedder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = embedder.backbone.model.config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    embedder.save_pretrained(tmp_path / "still")
    return tmp_path / "still"


@pytest.mark.parametrize("case", CASES)
def test_three_steps_end_with_the_same_weights(case, still, tmp_path):
    rows, loss, name, more = CASES[case]
    model = SentenceTransformer(str(still), device="cpu")
    args = SentenceTransformerTrainingArguments(**settings(tmp_path / "theirs"))
    theirs = SentenceTransformerTrainer(
        model, args, datasets.Dataset.from_list(rows), loss=loss(model)
    )
    theirs.train()
    embedder = Embedder.from_pretrained(still, device="cpu")
    args = TrainingArguments(**settings(tmp_path / "ours"), **more)
    ours = Trainer(embedder, args, rows, loss=name)
    ours.train()
    np.testing.assert_allclose(reported(ours), reported(theirs), rtol=0, atol=5e-5)
    found = {key.split("model.")[-1]: each for key, each in embedder.state_dict().items()}
    for key, each in model.state_dict().items():
        # The gradient of a key's bias is 0 but for rounding, which Adam scales to whole steps.
        if each.is_floating_point() and not key.endswith("key.bias"):
            other = found[key.split("model.")[-1]]
            assert float((each - other).abs().max()) < 5e-4, key
            assert float((each - other).abs().mean()) < 5e-6, key


@pytest.mark.medium
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_ends_with_the_weights_of_pefts_own(still, tmp_path, rslora):
    """Two steps of plain gradient descent from the same first weights, over all rows at once."""
    shared = {"target_modules": ["query", "value"], "use_rslora": rslora}
    table = {"kind": "lora", "rank": 4, "alpha": 16, "dropout": 0.0, "rslora": rslora}
    descent = {"optim": "sgd", "learning_rate": 0.02, "lr_scheduler_type": "constant"}
    more = {"max_steps": 2, "max_grad_norm": 0, "weight_decay": 0.0, **descent}
    args = TrainingArguments(**{**settings(tmp_path), **more})
    args.adapter = {**table, "targets": shared["target_modules"]}
    trainer = Trainer(Embedder.from_pretrained(still, device="cpu"), args, TRIPLETS)
    ours = [each for each in trainer.model.parameters() if each.requires_grad]
    model = AutoModel.from_pretrained(still)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, **shared))
    theirs = [each for each in model.parameters() if each.requires_grad]
    with torch.no_grad():
        for each, first in zip(theirs, ours, strict=True):
            each.copy_(first)
    before = [each.detach().clone() for each in theirs]
    trainer.train()
    tokenizer = AutoTokenizer.from_pretrained(still)
    optimiser = torch.optim.SGD(theirs, lr=0.02)
    names = ("anchor", "positive", "negative")
    for _ in range(2):
        means = []
        for name in names:
            batch = tokenizer([row[name] for row in TRIPLETS], padding=True, return_tensors="pt")
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            means.append((states * mask).sum(1) / mask.sum(1))
        query, *documents = (torch.nn.functional.normalize(each) for each in means)
        scores = query @ torch.cat(documents).T / 0.05
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(scores, torch.arange(len(query))).backward()
        optimiser.step()
    assert (
        max(float((a - b).detach().abs().max()) for a, b in zip(theirs, before, strict=True)) > 1e-3
    )
    torch.testing.assert_close(
        [each.detach() for each in ours], [each.detach() for each in theirs], atol=1e-6, rtol=1e-5
    )
