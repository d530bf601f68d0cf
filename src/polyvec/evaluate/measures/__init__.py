"""Measures of the literature, by topic; scores are fractions unless a docstring says otherwise.

Each docstring gives the result, its range and its paper. Predicted values are the first argument,
gold values the second; rankings are qrels and run. Bad input raises DataError or ShapeError, a bad
option SettingsError, a missing package MissingExtraError.
"""

from polyvec.evaluate.measures.classification import (
    accuracy,
    average_precision,
    best_accuracy,
    best_f1,
    f1,
    pair_classification,
)
from polyvec.evaluate.measures.clustering import ari, clustering_accuracy, nmi, purity, v_measure
from polyvec.evaluate.measures.correlation import correlations, pearson, spearman
from polyvec.evaluate.measures.efficiency import compression_rate, inference_time_s
from polyvec.evaluate.measures.geometry import (
    alignment,
    cluster_isotropy,
    effective_rank,
    isoscore,
    isotropy,
    mean_cosine,
    uniformity,
)
from polyvec.evaluate.measures.instruction import p_mrr, rank_change, robustness_at_k
from polyvec.evaluate.measures.likelihood import contrastive_nll, perplexity
from polyvec.evaluate.measures.neighbours import hubness, intrinsic_dimension, k_occurrence
from polyvec.evaluate.measures.ranking import (
    CUTS,
    MTEB_MEASURES,
    RETRIEVAL_MEASURES,
    accuracy_at_k,
    dcg,
    dcg_at_k,
    map_at_k,
    mrr_at_k,
    ndcg_at_k,
    per_query,
    recall_at_k,
    retrieval,
)
from polyvec.evaluate.measures.text import (
    attribute_hit_rate,
    bleu,
    embedding_cosine,
    exact_match,
    normalized,
    rouge_l,
    rouge_n,
    token_accuracy,
    token_overlap,
)

__all__ = [
    "CUTS",
    "MTEB_MEASURES",
    "RETRIEVAL_MEASURES",
    "accuracy",
    "accuracy_at_k",
    "alignment",
    "ari",
    "attribute_hit_rate",
    "average_precision",
    "best_accuracy",
    "best_f1",
    "bleu",
    "cluster_isotropy",
    "clustering_accuracy",
    "compression_rate",
    "contrastive_nll",
    "correlations",
    "dcg",
    "dcg_at_k",
    "effective_rank",
    "embedding_cosine",
    "exact_match",
    "f1",
    "hubness",
    "inference_time_s",
    "intrinsic_dimension",
    "isoscore",
    "isotropy",
    "k_occurrence",
    "map_at_k",
    "mean_cosine",
    "mrr_at_k",
    "ndcg_at_k",
    "nmi",
    "normalized",
    "p_mrr",
    "pair_classification",
    "pearson",
    "per_query",
    "perplexity",
    "purity",
    "rank_change",
    "recall_at_k",
    "retrieval",
    "robustness_at_k",
    "rouge_l",
    "rouge_n",
    "spearman",
    "token_accuracy",
    "token_overlap",
    "uniformity",
    "v_measure",
]
