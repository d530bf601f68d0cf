"""The table of losses."""

from polyvec.registry import Registry
from polyvec.train.losses.distillation import kl_rank
from polyvec.train.losses.info_nce import LearnedInfoNCE, info_nce
from polyvec.train.losses.part import Loss
from polyvec.train.losses.scored import angle, cosent, mse_score

# Add yours here; tests walk the table.
LOSSES: Registry[Loss] = Registry(
    "loss",
    {
        "info_nce": info_nce,
        "info_nce_learned": LearnedInfoNCE,
        "cosent": cosent,
        "angle": angle,
        "mse_score": mse_score,
        "kl_rank": kl_rank,
    },
)
