"""Experiments of training_effects.py about Table 3: decoders beside an embedder.

The functions take the classes Arm and Experiment, so that training_effects may import this file.
DenoSent: the same pairs and texts with the contrastive loss alone, and with the denoising decoder
beside it. Document expansion: the same questions after a stage in which a decoder writes them from
the passage's vector, and without one.
"""

from collections.abc import Mapping
from typing import Any

Table = Mapping[str, Any]
SHORT = {"batch_size": 32, "max_steps": 60}  # of nano, each stage
INFO_NCE = [{"kind": "info_nce", "temperature": 0.05}]
ATTENTION = {"attention": "bidirectional", "pooling": "mean", "template": None}
# Questions that people wrote and their passages stand for a language model's.
QUESTIONS = {"name": "squad_qg_pairs"}
PASSAGE = {"text": "sentence"}


def denosent(arm: Any, experiment: Any, scale: str) -> Any:
    """Paraphrases (Quora's duplicates) are the discrete noise; without it, texts and dropout."""
    decoder = {"num_layers": 4 if scale == "small" else 2}
    common = {"losses": INFO_NCE, "max_length": 64, "warmup_steps": 0.1}
    common |= {"batch_size": 64, "max_steps": 100} if scale == "small" else SHORT
    pairs = {**common, "data": [{"name": "quora_pairs", "limit": 12_000, "symmetric": True}]}
    # As the experiment llm2vec reads texts twice.
    texts = {
        **common,
        "data": [{"name": "wiki_sentences"}],
        "attention_dropout": 0.3,
    }
    stages = {
        "pairs, contrastive": {**pairs, "kind": "scl"},
        "pairs, denoising beside": {**pairs, **decoder, "kind": "denosent"},
        "texts, contrastive": {**texts, "kind": "ucl"},
        "texts, denoising beside": {**texts, **decoder, "kind": "denosent", "own_positive": True},
    }
    arms = {"untrained": arm("denosent", ATTENTION)}
    arms |= {name: arm("denosent", ATTENTION, [stage]) for name, stage in stages.items()}
    claims = [
        (
            f"{data}, denoising beside",
            f"{data}, contrastive",
            f"restoring sentences beside the contrastive loss helps ({data})",
            ("stsb test", "sick test"),
        )
        for data in ("pairs", "texts")
    ]
    columns = ("stsb test", "sick test")
    return experiment("DenoSent, arXiv:2401.13621", arms, claims, columns=columns)


def document_expansion(arm: Any, experiment: Any, scale: str) -> Any:
    """The first stage has the same steps in both arms that have one."""
    common = {"data": [QUESTIONS], "max_length": 96, "warmup_steps": 0.1}
    common |= {"batch_size": 32, "max_steps": 100} if scale == "small" else SHORT
    bottleneck = {**common, "kind": "bottleneck"}
    masked = {
        **common,
        "kind": "mlm",
        "mask": "<mask>",
        "data": [{**QUESTIONS, "format": "text", "columns": PASSAGE}],
    }
    scl = {**common, "kind": "scl", "losses": INFO_NCE, "query_max_length": 64}
    arms = {
        "untrained": arm("document-expansion"),
        "bottleneck": arm("document-expansion", {}, [bottleneck]),
        "contrastive": arm("document-expansion", {}, [scl]),
        "masked tokens, then contrastive": arm("document-expansion", {}, [masked, scl]),
        "bottleneck, then contrastive": arm("document-expansion", {}, [bottleneck, scl]),
    }
    claims = [
        (
            "bottleneck, then contrastive",
            "contrastive",
            "writing the queries from the vector first makes a better start",
            ("med",),
        ),
        (
            "contrastive",
            "untrained",
            "queries that were written make a retriever",
            ("med",),
        ),
    ]
    return experiment("Document expansion, arXiv:2308.08285", arms, claims, columns=("med",))
