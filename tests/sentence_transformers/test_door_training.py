"""sentence-transformers' losses, trainer and evaluators take our model."""

import numpy as np
import pytest
import sentence_transformers
import torch
from datasets import Dataset
from sentence_transformers.readers import InputExample
from torch.utils.data import DataLoader

from polyvec.sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses
from polyvec.sentence_transformers.evaluation import EmbeddingSimilarityEvaluator
from polyvec.sentence_transformers.training_args import SentenceTransformerTrainingArguments

ANCHORS, POSITIVES = ["a cat", "rain", "x"], ["a kitten", "the weather in spring", "y"]


@pytest.mark.parametrize(
    "name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"]
)
def test_a_loss_has_the_same_value(tiny_bert, name):
    values = []
    for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer):
        model = kind(str(tiny_bert), device="cpu")
        features = [model.preprocess(texts) for texts in (ANCHORS, POSITIVES)]
        values.append(getattr(losses, name)(model)(features, None).item())
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_the_trainer_trains_and_resumes(tiny_bert, tmp_path):
    rows = Dataset.from_dict({"anchor": ANCHORS, "positive": POSITIVES})
    options = {"save_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    for steps, resume in ((1, None), (2, True)):
        model = SentenceTransformer(tiny_bert, device="cpu")
        before = model.encode(ANCHORS)
        args = SentenceTransformerTrainingArguments(str(tmp_path), max_steps=steps, **options)
        loss = losses.MultipleNegativesRankingLoss(model)
        trainer = SentenceTransformerTrainer(model, args, train_dataset=rows, loss=loss)
        trainer.train(resume_from_checkpoint=resume)
    assert np.abs(model.encode(ANCHORS) - before).max() > 1e-5
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "checkpoint-2"), device="cpu")
    assert np.allclose(again.encode(ANCHORS), model.encode(ANCHORS), atol=2e-6)


def test_an_evaluator_gives_the_same(tiny_bert):
    evaluator = EmbeddingSimilarityEvaluator(ANCHORS, POSITIVES, [0.1, 0.7, 0.3])
    found = SentenceTransformer(tiny_bert).evaluate(evaluator)
    wanted = evaluator(sentence_transformers.SentenceTransformer(str(tiny_bert), device="cpu"))
    assert found == pytest.approx(wanted, abs=1e-5)
    assert torch.is_grad_enabled()


def test_the_older_fit_trains_as_theirs(tiny_bert, tmp_path, monkeypatch):
    """With no dropout; the first steps of the same examples in the same order."""
    monkeypatch.chdir(tmp_path)  # where it makes a folder of checkpoints
    examples = [InputExample(texts=list(pair)) for pair in zip(ANCHORS, POSITIVES, strict=True)]
    vectors = []
    for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer):
        model = kind(str(tiny_bert), device="cpu")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loss = losses.MultipleNegativesRankingLoss(model)
        model.fit(
            [(DataLoader(examples, batch_size=3), loss)],
            epochs=2,
            warmup_steps=0,
            optimizer_params={"lr": 1e-3},
            show_progress_bar=False,
        )
        vectors.append(model.encode(ANCHORS))
    assert np.abs(vectors[0] - SentenceTransformer(tiny_bert).encode(ANCHORS)).max() > 1e-3
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-3)
