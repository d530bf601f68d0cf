"""What stages teach: TASKS names the kinds of [[stage]].

A part is called with the stage's own settings and with the facts that it declares: "embedder" and
"stage" (its StageSettings). It returns a Task.
"""

from collections.abc import Callable
from typing import Any

from polyvec.registry import Registry
from polyvec.train.tasks import contrastive, language

TASKS: Registry[Callable[..., Any]] = Registry(
    "stage",
    {
        "distill": contrastive.distill,
        "mlm": language.MaskedLanguageModel,
        "mntp": language.MaskedNextToken,
        "ntp": language.NextToken,
        "scl": contrastive.contrastive,
        "ucl": contrastive.unsupervised,
        "wcl": contrastive.contrastive,
    },
)
