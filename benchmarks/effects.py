"""Experiments of training_effects.py: what is trained with and without, and what is measured."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import effects_augmented
import effects_prompts
import numpy as np
import torch
from training_free import drawn, part

from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import TaskSet
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.evaluate.tasks import Evaluator
from polyvec.train.language_head import attach_head, log_probabilities

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Sets:
    """What is measured, by the name of its column; `folder` is that of the data sets.

    columns: those of the arm that is measured. large: sizes of scale small.
    """

    folder: Path
    tasks: Mapping[str, TaskSet]
    texts: Sequence[str]  # of wikitext2's test split
    large: bool
    columns: Sequence[str] = ()


Measure = Callable[[Any, Sets], dict[str, float]]


@dataclass(frozen=True)
class Arm:
    """An embedder, as a recipe and what is changed in it, and the stages that train it.

    measure: what is measured beside the columns. backbone: in place of the scale's.
    """

    recipe: str
    changes: Table = field(default_factory=dict)
    stages: Sequence[Table] = ()
    measure: Measure | None = None


class Claim(NamedTuple):
    """What a paper says of two arms; ends: of the columns that it is about (all, if None)."""

    better: str
    worse: str
    says: str
    ends: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Experiment:
    """Arms, and claims about them: the fields of Claim."""

    paper: str
    arms: Mapping[str, Arm]
    claims: Sequence[tuple[Any, ...]]
    columns: Sequence[str] = (
        "stsb test",
        "sick test",
        "sts16 test",
        "trec test",
        "med",
        "scifact",
    )


def data_sets(folder: Path, scale: str) -> Sets:
    """Test splits; parts of the large ones, smaller at nano."""

    def read(name: str) -> Any:
        return read_folder(folder / name, "test")

    small = scale == "small"
    tasks: dict[str, TaskSet] = {
        "stsb test": read("stsb"),
        "sick test": drawn(read("sick"), 1500 if small else 500),
        "sts16 test": read("sts16") if small else drawn(read("sts16"), 400),
        "med": read("med") if small else part(read("med"), 30, 400),
        "scifact": part(read("scifact"), *((150, 700) if small else (100, 300))),
    }
    if small:
        tasks["trec test"] = read("trec")
    with gzip.open(
        folder / "wikitext2" / "wiki.test.tokens.txt.gz", "rt", encoding="utf-8"
    ) as file:
        texts = [line.strip() for line in file if len(line) > 200]
    return Sets(folder, tasks, texts[: 200 if small else 50], small)


# ---- stages -------------------------------------------------------------------------------------

LORA = {"kind": "lora", "rank": 16, "alpha": 32, "dropout": 0.05}
INFO_NCE = [{"kind": "info_nce", "temperature": 0.05}]
# Sentences that mean the same, and questions with what answers them: general, none of a test set.
PAIRS = (
    {"name": "snli"},
    {"name": "cad_nli"},
    {"name": "quora_pairs", "limit": 12_000},
    {"name": "squad_qg_pairs"},
    {"name": "medquad", "limit": 6_000},
)


def mntp(**more: Any) -> Table:
    return {
        "kind": "mntp",
        "data": ({"name": "wikitext2"}, {"name": "wiki_sentences"}),
        "probability": 0.2,
        "mask": "_",
        "batch_size": 32,
        "max_length": 128,
        "learning_rate": 1e-3,
        "warmup_steps": 0.1,
        **more,
    }


def simcse(**more: Any) -> Table:
    """LLM2Vec's: attention dropout 0.3, temperature 0.05, batches of 128."""
    return {
        "kind": "ucl",
        "data": ({"name": "wiki_sentences"},),
        "losses": INFO_NCE,
        "attention_dropout": 0.3,
        "batch_size": 128,
        "max_length": 64,
        "learning_rate": 5e-4,
        "warmup_steps": 0.1,
        **more,
    }


def scl(**more: Any) -> Table:
    return {
        "kind": "scl",
        "data": PAIRS,
        "losses": INFO_NCE,
        "batch_size": 64,
        "max_length": 128,
        "query_max_length": 128,
        "warmup_steps": 0.1,
        **more,
    }


# ---- experiments --------------------------------------------------------------------------------


def llm2vec(scale: str) -> Experiment:
    mean = {"template": None, "pooling": "mean", "prompts": {}, "default_prompt": None}
    both = {**mean, "attention": "bidirectional"}
    return Experiment(
        "LLM2Vec, arXiv:2404.05961",
        {
            "causal": Arm("causal-mean", mean),
            "causal, SimCSE": Arm("causal-mean", mean, [simcse()]),
            "bidirectional": Arm("causal-mean", both),
            "bidirectional, MNTP": Arm("causal-mean", both, [mntp()]),
            "bidirectional, SimCSE": Arm("causal-mean", both, [simcse()]),
            "bidirectional, MNTP, SimCSE": Arm("causal-mean", both, [mntp(), simcse()]),
        },
        (
            ("causal", "bidirectional", "without training, attention made bidirectional hurts"),
            ("bidirectional, MNTP", "bidirectional", "MNTP teaches the model to use it"),
            ("bidirectional, MNTP, SimCSE", "bidirectional, MNTP", "SimCSE adds to it"),
            ("bidirectional, MNTP, SimCSE", "causal, SimCSE", "the whole beats a causal mean"),
            ("bidirectional, MNTP, SimCSE", "bidirectional, SimCSE", "SimCSE needs MNTP before"),
        ),
    )


def pooling(scale: str) -> Experiment:
    """The same contrastive stage under each pooling."""
    plain = {"template": None, "prompts": {}, "default_prompt": None}
    both = {**plain, "attention": "bidirectional"}
    arms = {
        "mean, untrained": Arm("causal-mean", plain),
        "mean": Arm("causal-mean", plain, [scl()]),
        "last token": Arm("causal-last", {}, [scl()]),
        "weighted mean": Arm("causal-mean", {**plain, "pooling": "weighted_mean"}, [scl()]),
        "bidirectional mean": Arm("causal-mean", both, [scl()]),
        "latents, bidirectional": Arm("causal-mean", {**both, "pooling": "latent_attn"}, [scl()]),
        "all layers, bidirectional": Arm("mltp-multi-bidirectional", plain, [scl()]),
        "all layers, causal": Arm("mltp-multi-causal", plain, [scl()]),
        "last layers' tokens, causal": Arm("mltp-last-causal", plain, [scl()]),
        "echo": Arm("echo", {}, [scl()]),
        "PromptEOL": Arm("prompteol", {}, [scl()]),
    }
    return Experiment(
        "poolings after the same contrastive stage",
        arms,
        (
            ("latents, bidirectional", "bidirectional mean", "NV-Embed: latents beat the mean"),
            ("latents, bidirectional", "last token", "NV-Embed: latents beat the last token"),
            ("all layers, bidirectional", "bidirectional mean", "MLTP: all layers beat the last"),
            ("all layers, causal", "last token", "MLTP: all layers beat the last token"),
            ("bidirectional mean", "mean", "bidirectional beats causal"),
            ("echo", "mean", "Echo: still ahead after the same training"),
            ("weighted mean", "mean", "SGPT: weights that grow help"),
            ("PromptEOL", "last token", "PromptEOL: the prompt still helps"),
            ("mean", "mean, untrained", "training helps"),
        ),
    )


def gritlm(scale: str) -> Experiment:
    """What follows in novels is predicted beside each batch of pairs; measured is wikitext2."""
    generating = {
        **scl(),
        "kind": "multi_task",
        "generation": ("novels_successive",),
        "data": (*PAIRS, {"name": "novels_successive", "group": "generation"}),
        "mixing": {"group_sizes": {"generation": 16}},
    }
    both = {"template": None, "pooling": "mean", "prompts": {}, "default_prompt": None}
    arms = {
        "untrained": Arm("causal-mean", {**both, "attention": "bidirectional"}, (), perplexity),
        "embedding only": Arm(
            "causal-mean", {**both, "attention": "bidirectional"}, [scl()], perplexity
        ),
        "embedding and generation": Arm(
            "causal-mean",
            {**both, "attention": "bidirectional"},
            [generating],
            perplexity,
        ),
    }
    return Experiment(
        "GritLM, arXiv:2402.09906",
        arms,
        (
            ("embedding and generation", "embedding only", "generation costs no embedding quality"),
            ("embedding and generation", "untrained", "the embedding improves"),
            (
                "embedding and generation",
                "embedding only",
                "and keeps what predicts text",
                ("nats a token",),
            ),
        ),
    )


def matryoshka(scale: str) -> Experiment:
    plain = {"template": None, "prompts": {}, "default_prompt": None, "pooling": "mean"}
    cut = lambda model, sets: truncated(model, sets, 8)  # noqa: E731
    size = {"dimensions": [192, 96, 48, 24] if scale == "nano" else [576, 288, 144, 72]}
    return Experiment(
        "Matryoshka, arXiv:2205.13147",
        {
            "plain": Arm("causal-mean", plain, [scl()], cut),
            "Matryoshka": Arm("causal-mean", plain, [scl(matryoshka=size)], cut),
        },
        (("Matryoshka", "plain", "an eighth of the dimensions keeps more", (", 1/8",)),),
        columns=("stsb test", "sick test", "sts16 test", "trec test", "med", "scifact"),
    )


INSTRUCTIONS = {
    "snli": "Retrieve a sentence that follows from the premise",
    "cad_nli": "Retrieve a sentence that follows from the premise",
    "quora_pairs": "Retrieve a question that asks the same",
    "squad_qg_pairs": "Retrieve a sentence that answers the question",
    "medquad": "Retrieve a passage that answers the medical question",
}


def instructions(scale: str) -> Experiment:
    told = tuple({**each, "instruction": INSTRUCTIONS[each["name"]]} for each in PAIRS)
    return Experiment(
        "instructions, arXiv:2212.09741, arXiv:2401.00368",
        {
            "without": Arm("causal-last", {}, [scl()]),
            "with": Arm("e5-mistral", {}, [scl(data=told)]),
        },
        (("with", "without", "instructions help on tasks that training did not have"),),
        columns=("stsb test", "sick test", "sts16 test", "trec test", "med", "scifact"),
    )


def llama2vec(scale: str) -> Experiment:
    eba = {
        "kind": "eba",
        "data": ({"name": "novels_successive"},),
        "batch_size": 16,
        "max_length": 160,
        "warmup_steps": 0.1,
    }
    return Experiment(
        "Llama2Vec, arXiv:2312.15503",
        {
            "contrastive only": Arm("llama2vec", {}, [scl()]),
            "EBAE and EBAR first": Arm("llama2vec", {}, [eba, scl()]),
            "EBAE and EBAR only": Arm("llama2vec", {}, [eba]),
            "untrained": Arm("llama2vec", {}),
        },
        (
            ("EBAE and EBAR first", "contrastive only", "the same fine-tuning ends higher"),
            ("EBAE and EBAR only", "untrained", "the adapted vectors say more of the text"),
        ),
    )


def bellm(scale: str) -> Experiment:
    """The paper pools the last token, which sees all tokens anyway; its code can pool the mean."""
    mean = {"pooling": "mean"}
    stage = scl(
        data=({"name": "cad_nli"}, {"name": "snli"}),
        losses=[
            {"kind": "info_nce", "temperature": 0.05, "weight": 20.0},
            {"kind": "angle", "temperature": 0.05, "weight": 1.0},
        ],
        max_length=64,
    )
    return Experiment(
        "BeLLM, arXiv:2311.05296",
        {
            "causal": Arm("bellm", {"attention": "native"}, [stage]),
            "last layer bidirectional": Arm("bellm", {}, [stage]),
            "all layers bidirectional": Arm("bellm", {"attention": "bidirectional"}, [stage]),
            "causal, mean": Arm("bellm", {"attention": "native", **mean}, [stage]),
            "last layer bidirectional, mean": Arm("bellm", mean, [stage]),
        },
        (
            ("last layer bidirectional", "causal", "a bidirectional last layer helps"),
            ("last layer bidirectional", "all layers bidirectional", "and beats one throughout"),
            (
                "last layer bidirectional, mean",
                "causal, mean",
                "and helps a mean",
            ),
        ),
    )


def ullme(scale: str) -> Experiment:
    data = ({"name": "snli", "instruction": "Retrieve semantically similar text."},)
    few = {"batch_size": 16, "max_length": 64, "data": data}
    grl = {**scl(**few), "kind": "grl", "template": "own"}
    return Experiment(
        "ULLME, arXiv:2408.03402",
        {
            "contrastive": Arm("ullme", {}, [scl(**few)]),
            "and generation": Arm("ullme", {}, [{**grl, "alignment": 0.0, "preference": None}]),
            "and preference": Arm("ullme", {}, [{**grl, "alignment": 0.0}]),
            "and alignment": Arm("ullme", {}, [grl]),
        },
        (
            ("and generation", "contrastive", "learning to write the passage helps"),
            ("and preference", "and generation", "preferring it to a negative helps more"),
            ("and alignment", "and preference", "following the generator's scores helps more"),
        ),
    )


def splade(scale: str) -> Experiment:
    """Settings were chosen on 200 pairs of squad_qg_pairs' dev file, which no stage trains on.

    Untrained, thousands of a causal model's logits are above 0, so dot products are near 5,000. At
    temperature 1 the loss begins in the thousands, all that lowers it is smaller weights, and 100
    steps end with a handful of entries and the loss of vectors that say nothing, log 32, at any
    weight of FLOPS. Temperature 50 begins at about 100 and learns: MRR among the 200 is 3.5
    untrained, 22 with weight 0 (708 entries a query, 1,883 a document), 29 with 0.003 (276, 789),
    13 with 0.01 (20, 87). The weight grows over half of the steps, as SPLADE's does.
    """

    def stage(weight: float) -> Table:
        losses = [{"kind": "info_nce", "temperature": 50.0, "similarity": "dot"}]
        if weight:
            losses.append(
                {
                    "kind": "flops",
                    "query_weight": weight,
                    "document_weight": weight,
                    "warmup_steps": 30,
                }
            )
        data = ({"name": "squad_qg_pairs"},)
        return scl(data=data, losses=losses, batch_size=32, max_length=64, max_steps=60)

    weights = (0.0, 1e-3, 3e-3, 1e-2)
    arms = {
        f"weight {weight:g}": Arm("mistral-splade", {}, [stage(weight)], sparsity)
        for weight in weights
    }
    return Experiment(
        "Mistral-SPLADE, arXiv:2408.11119",
        {"untrained": Arm("mistral-splade", {}, (), sparsity), **arms},
        (
            ("weight 0.001", "weight 0", "sparsity costs little"),
            ("weight 0.003", "weight 0", "nor does more of it"),
            ("weight 0.003", "untrained", "training helps"),
        ),
        columns=("med", "scifact"),
    )


def debater(scale: str) -> Experiment:
    asked = "Given a web search query, retrieve relevant passages that answer the query"
    data = ({"name": "squad_qg_pairs", "instruction": asked},)
    chain = {**scl(data=data, max_length=64), "kind": "deliberation"}
    del chain["losses"]
    return Experiment(
        "DEBATER, arXiv:2502.12974",
        {
            "one token": Arm("e5-mistral", {}, [scl(data=data, max_length=64)]),
            "a chain of 8": Arm("debater", {}, [chain]),
            "untrained": Arm("debater", {}),
        },
        (("a chain of 8", "one token", "a chain of tokens that teaches its last one helps"),),
        columns=("stsb test", "med", "scifact"),
    )


def weak_then_strong(scale: str) -> Experiment:
    """Neighbouring passages of novels, then labelled pairs."""
    weak = {**scl(data=({"name": "novels_successive"},), max_length=96), "kind": "wcl"}
    plain = {"template": None, "prompts": {}, "default_prompt": None, "pooling": "mean"}
    return Experiment(
        "weak, then strong pairs: GTR, arXiv:2112.07899; GTE, arXiv:2308.03281",
        {
            "untrained": Arm("causal-mean", plain),
            "weak": Arm("causal-mean", plain, [weak]),
            "strong": Arm("causal-mean", plain, [scl()]),
            "weak, then strong": Arm("causal-mean", plain, [weak, scl()]),
        },
        (
            ("weak", "untrained", "weak pairs help"),
            ("weak, then strong", "strong", "before strong ones, too"),
        ),
    )


def negatives(scale: str) -> Experiment:
    """Hard negatives of NFCorpus' and SQuAD's queries, mined after a first stage without."""
    plain = {"template": None, "prompts": {}, "default_prompt": None, "pooling": "mean"}
    data = ({"name": "nfcorpus", "limit": 4000}, {"name": "squad_qg_pairs", "limit": 6000})
    base = scl(data=data, max_length=64, batch_size=16)
    mined = {"num_negatives": 4, "range_max": 30}
    return Experiment(
        "NV-Retriever, arXiv:2407.15831",
        {
            "in-batch": Arm("causal-mean", plain, [base, base]),
            "hardest": Arm("causal-mean", plain, [base, {**base, "mining": mined}]),
            "positive-aware": Arm(
                "causal-mean", plain, [base, {**base, "mining": {**mined, "relative_margin": 0.05}}]
            ),
        },
        (
            ("positive-aware", "hardest", "negatives well below the positive beat the hardest"),
            ("positive-aware", "in-batch", "and none"),
        ),
    )


def bge_icl(scale: str) -> Experiment:
    return effects_prompts.bge_icl(Arm, Experiment)


def rare(scale: str) -> Experiment:
    return effects_prompts.rare(Arm, Experiment)


def promptriever(scale: str) -> Experiment:
    return effects_prompts.promptriever(Arm, Experiment)


def denosent(scale: str) -> Experiment:
    return effects_augmented.denosent(Arm, Experiment, scale)


def document_expansion(scale: str) -> Experiment:
    return effects_augmented.document_expansion(Arm, Experiment, scale)


# ---- measuring ----------------------------------------------------------------------------------


def perplexity(model: Any, sets: Sets) -> dict[str, float]:
    """Mean negative log-likelihood of a token of wikitext2's test split, in nats, read causally."""
    attach_head(model)
    backbone = model.backbone
    spec = AttentionSpec("causal") if backbone.mechanism != "native" else None
    total, count = 0.0, 0
    model.eval()
    for text in sets.texts:
        ids = np.asarray(model.text_tokenizer.hf(text, add_special_tokens=False).input_ids[:256])
        with torch.inference_mode():
            states = backbone(TokenBatch.of_ids([ids]), attention=spec)
            targets = torch.from_numpy(ids[1:]).to(backbone.device)
            total -= float(log_probabilities(backbone, states.last_BTD[0, :-1], targets).sum())
        count += len(ids) - 1
    return {"nats a token": total / count}


def truncated(model: Any, sets: Sets, share: int) -> dict[str, float]:
    """The scores with the first 1/share of the dimensions."""
    size = model.get_embedding_dimension()
    model.truncate_dim = size // share
    try:
        return {f"{column}, 1/{share}": score(model, sets.tasks[column]) for column in sets.columns}
    finally:
        model.truncate_dim = None


def score(model: Any, task: TaskSet) -> float:
    return float(Evaluator(model, show_progress_bar=False).measure(task).outcome.main_score)


def sparsity(model: Any, sets: Sets) -> dict[str, float]:
    """Mean number of entries of a text's vector that are not zero, in thousands."""
    task = sets.tasks["stsb test"]
    vectors = model.encode(list(task.sentences1[:200]), show_progress_bar=False)
    dense = vectors.to_dense() if hasattr(vectors, "to_dense") else torch.as_tensor(vectors)
    return {"thousand entries": float((dense != 0).sum(1).float().mean()) / 1000}


EXPERIMENTS: Mapping[str, Callable[[str], Experiment]] = {
    "llm2vec": llm2vec,
    "pooling": pooling,
    "matryoshka": matryoshka,
    "instructions": instructions,
    "gritlm": gritlm,
    "llama2vec": llama2vec,
    "promptriever": promptriever,
    "bge-icl": bge_icl,
    "rare": rare,
    "splade": splade,
    "debater": debater,
    "ullme": ullme,
    "bellm": bellm,
    "weak-then-strong": weak_then_strong,
    "negatives": negatives,
    "denosent": denosent,
    "document-expansion": document_expansion,
}
