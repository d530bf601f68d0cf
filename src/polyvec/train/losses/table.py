"""The table of losses."""

from polyvec.registry import Registry
from polyvec.train.losses import (
    distillation,
    info_nce,
    labelled,
    queues,
    regularizers,
    scored,
    softmax,
    sparse,
    triplets,
)
from polyvec.train.losses.part import Loss

# Add yours here; tests walk the table, and docs/training.md lists it.
LOSSES: Registry[Loss] = Registry(
    "loss",
    {
        "info_nce": info_nce.info_nce,
        "info_nce_learned": info_nce.LearnedInfoNCE,
        "debiased_info_nce": softmax.debiased_info_nce,
        "arc_margin": softmax.arc_margin,
        "soft_info_nce": softmax.soft_info_nce,
        "peer_ccr": softmax.peer_ccr,
        "max_view": softmax.max_view,
        "self_distill": softmax.self_distill,
        "mixed_negatives": softmax.mixed_negatives,
        "relational_info_nce": softmax.RelationalInfoNCE,
        "momentum_queue": queues.MomentumQueue,
        "triplet": triplets.triplet,
        "margin_triplet": triplets.margin_triplet,
        "mega_batch_margin": triplets.mega_batch_margin,
        "hier_triplet": triplets.hier_triplet,
        "rank": triplets.rank,
        "batch_triplet": triplets.batch_triplet,
        "cosent": scored.cosent,
        "angle": scored.angle,
        "mse_score": scored.mse_score,
        "contrastive": labelled.contrastive,
        "online_contrastive": labelled.online_contrastive,
        "softmax_nli": labelled.SoftmaxNLI,
        "kl_rank": distillation.kl_rank,
        "margin_mse": distillation.margin_mse,
        "kd_mse": distillation.kd_mse,
        "kd_projected": distillation.ProjectedDistillation,
        "kd_similarity": distillation.kd_similarity,
        "kd_relative": distillation.kd_relative,
        "flops": regularizers.flops,
        "l1": regularizers.l1,
        "csr": sparse.CSR,
        "alignment_uniformity": regularizers.alignment_uniformity,
        "orthogonal_regularization": regularizers.orthogonal_regularization,
        "orthogonal_equivariance": regularizers.orthogonal_equivariance,
    },
)
