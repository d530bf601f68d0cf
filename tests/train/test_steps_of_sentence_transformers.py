"""Three steps of Trainer against three of sentence-transformers': same losses, same weights."""

import datasets
import numpy as np
import pytest
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from toy_run import PAIRS

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
