"""What stages teach: TASKS names the kinds of [[stage]].

A part is called with the stage's own settings and with the facts that it declares: "embedder" and
"stage" (its StageSettings). It returns a Task.
"""

from collections.abc import Callable
from typing import Any

from polyvec.registry import Registry
from polyvec.train.tasks import (
    bottleneck,
    contrastive,
    cross_encoder,
    deliberation,
    denoising,
    eba,
    edits,
    language,
    multi_task,
    replaced,
    true_false,
)

TASKS: Registry[Callable[..., Any]] = Registry(
    "stage",
    {
        "bottleneck": bottleneck.Bottleneck,
        "cross_encoder": cross_encoder.CrossEncoderStage,
        "csit": multi_task.SessionTuned,
        "deliberation": deliberation.Deliberation,
        "denosent": denoising.DenoSent,
        "diffcse": replaced.DiffCSE,
        "distill": contrastive.distill,
        "eba": eba.EmbeddingBased,
        "grl": multi_task.GenerationAligned,
        "merge": edits.Merge,
        "mlm": language.MaskedLanguageModel,
        "mntp": language.MaskedNextToken,
        "multi_task": multi_task.MultiTask,
        "ntp": language.NextToken,
        "prune": edits.Prune,
        "prune_introspector": edits.PruneIntrospector,
        "scl": contrastive.contrastive,
        "scl_mlm": multi_task.ContrastiveMasked,
        "true_false": true_false.TrueFalseStage,
        "ucl": contrastive.unsupervised,
        "wcl": contrastive.contrastive,
    },
    elsewhere={
        "compress": "polyvec.compress.soft.stage:Compress",
        "compress_rank": "polyvec.compress.soft.ranking:RankPassages",
        "correct": "polyvec.invert.stage:Correct",
        "invert": "polyvec.invert.stage:Invert",
    },
)
