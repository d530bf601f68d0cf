"""What SentenceTransformer, SparseEncoder and CrossEncoder have in common beside their texts."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyvec.errors import InputError
from polyvec.sentence_transformers import workers
from polyvec.sentence_transformers.adapters import Adapters
from polyvec.sentence_transformers.installed import attribute, blank, counterpart
from polyvec.sentence_transformers.saving import upload

logger = logging.getLogger(__name__)


class _OfClass:
    """sentence-transformers' class for model cards, imported when it is first asked for."""

    def __get__(self, model: Any, kind: Any) -> Any:
        return attribute("sentence_transformers", f"{kind._counterpart}ModelCardData")


class Common(Adapters):
    """Standing for sentence-transformers' class, hub, evaluation, processes, older methods."""

    default_huggingface_organization: str | None = "sentence-transformers"
    model_card_data_class = _OfClass()
    module_kwargs = None
    is_hpu_graph_enabled = False
    _counterpart: str
    _fits: str  # the module with sentence-transformers' older training loop
    _model_card_data: Any
    backend: str
    max_seq_length: Any

    # ---- standing for sentence-transformers' class ------------------------------------------

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return counterpart(self._counterpart, type(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return blank, (type(self),), self.__getstate__()

    # ---- what it is -------------------------------------------------------------------------

    @property
    def modalities(self) -> list[str]:
        """What can be embedded: texts."""
        return ["text"]

    def supports(self, modality: Any) -> bool:
        """Whether inputs of this kind can be embedded."""
        return bool(modality == "text")

    def get_backend(self) -> str:
        """ "torch"."""
        return self.backend

    def get_model_kwargs(self) -> list[str]:
        """Keywords that `encode` or `predict` passes to the model: none."""
        return []

    def get_max_seq_length(self) -> int | None:
        """The older form of `max_seq_length`."""
        found: int | None = self.max_seq_length
        return found

    @property
    def model_card_data(self) -> Any:
        """sentence-transformers' data of a model card, as given or made when first read."""
        if self._model_card_data is None:
            self._model_card_data = self.model_card_data_class(local_files_only=True)
        if getattr(self._model_card_data, "model", self) is None:  # what the older fit reads
            self._model_card_data.register_model(self)
        return self._model_card_data

    @model_card_data.setter
    def model_card_data(self, data: Any) -> None:
        self._model_card_data = data

    def clear_placement_cache(self) -> None:
        """Nothing: a model of ours is on one device."""

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Compute states again in the backward pass, which takes less memory."""
        self.transformers_model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs, **options
        )

    # ---- saving -----------------------------------------------------------------------------

    def push_to_hub(
        self,
        repo_id: str,
        token: str | bool | None = None,
        private: bool | None = None,
        safe_serialization: bool = True,
        commit_message: str | None = None,
        local_model_path: str | None = None,
        exist_ok: bool = False,
        replace_model_card: bool = False,
        train_datasets: Sequence[str] | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Save the model and upload it to the hub; returns the address of the commit.

        The card is always written anew. Raises ModelError where the hub cannot be reached.
        """
        if not safe_serialization:
            raise InputError("safe_serialization=False: polyvec writes safetensors only")
        model: Any = self
        return upload(
            model.save_pretrained,
            repo_id,
            token=token,
            private=private,
            commit_message=commit_message,
            local_model_path=local_model_path,
            exist_ok=exist_ok,
            revision=revision,
            create_pr=create_pr,
        )

    def save_to_hub(
        self, repo_id: str, organization: str | None = None, *positional: Any, **options: Any
    ) -> str:
        """The older name of `push_to_hub`, whose repository may be named in two parts."""
        logger.warning("save_to_hub is deprecated; use push_to_hub")
        if organization is not None:
            owner, slash, _ = repo_id.partition("/")
            if slash and owner != organization:
                raise InputError(
                    f"save_to_hub: organization {organization!r} is not the owner of {repo_id!r}; "
                    "leave organization out"
                )
            repo_id = repo_id if slash else f"{organization}/{repo_id}"
            logger.warning("save_to_hub: organization is deprecated; use repo_id=%r", repo_id)
        return self.push_to_hub(repo_id, *positional, **options)

    @classmethod
    def merge(cls, models: Any = (), method: str = "linear", **options: Any) -> Any:
        """Raises InputError: polyvec merges no models."""
        raise InputError(
            f"polyvec merges no models: use sentence_transformers.{cls._counterpart}.merge (which "
            f"needs mergekit), save what it gives, and load the folder with {cls.__name__}"
        )

    # ---- evaluating, training ---------------------------------------------------------------

    def evaluate(self, evaluator: Any, output_path: str | None = None) -> Any:
        """What the evaluator gives for this model."""
        if not callable(evaluator):
            raise InputError(f"evaluator is {type(evaluator).__name__}, not an evaluator")
        if output_path is not None:
            Path(output_path).mkdir(parents=True, exist_ok=True)
        return evaluator(self, output_path)

    def fit(self, *positional: Any, **options: Any) -> Any:
        """sentence-transformers' older training loop, as that class has it."""
        return attribute(self._fits, "FitMixin").fit(self, *positional, **options)

    @staticmethod
    def _get_scheduler(*positional: Any, **options: Any) -> Any:
        """What the older fit asks of a model."""
        mixin = attribute("sentence_transformers.sentence_transformer.fit_mixin", "FitMixin")
        return mixin._get_scheduler(*positional, **options)

    def old_fit(self, *positional: Any, **options: Any) -> Any:
        """Raises InputError: that loop reaches into sentence-transformers' modules."""
        raise InputError("old_fit is the training loop before version 3; use fit, or a Trainer")

    # ---- processes --------------------------------------------------------------------------

    def start_multi_process_pool(self, target_devices: Sequence[str] | None = None) -> Any:
        """A pool for `pool=` of encode or predict: one process for each device."""
        return workers.start(self, target_devices)  # type: ignore[arg-type]

    stop_multi_process_pool = staticmethod(workers.stop)
