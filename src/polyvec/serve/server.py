"""What the routes of a server share."""

from dataclasses import dataclass, field

from polyvec.errors import known
from polyvec.serve.errors import AnswerError
from polyvec.serve.indexes import ServedIndex
from polyvec.serve.metrics import Metrics
from polyvec.serve.models import ServedModel
from polyvec.serve.rerankers import ServedReranker
from polyvec.serve.settings import ServerSettings


@dataclass(eq=False)
class Server:
    """The models of a server, by name, the first of which is the default, and what it counts."""

    models: dict[str, ServedModel]
    settings: ServerSettings
    metrics: Metrics
    indexes: dict[str, ServedIndex] = field(default_factory=dict)
    rerankers: dict[str, ServedReranker] = field(default_factory=dict)
    ready: bool = False
    failed: bool = False  # a model could not compute its first batch

    @property
    def served(self) -> "dict[str, ServedModel | ServedReranker]":
        """All that has a queue, by name."""
        return {**self.models, **self.rerankers}

    def model(self, name: str | None) -> ServedModel:
        """The model of a request; 404 for an unknown name, 503 before the models are warm."""
        if name is not None and name not in self.models:
            raise AnswerError(
                404,
                f"the model {name[:100]!r} is not here.{known(name[:100], self.models)}",
                param="model",
                code="model_not_found",
            )
        if self.failed:
            raise AnswerError(
                500,
                "a model could not compute its first batch; the server's log says why",
                kind="server_error",
            )
        if not self.ready:
            raise AnswerError(
                503,
                "the models are being loaded",
                kind="server_error",
                code="not_ready",
                retry_after=5,
            )
        return self.models[next(iter(self.models)) if name is None else name]

    def reranker(self, name: str | None) -> ServedReranker | None:
        """The reranker of this name, if it is one; 503 before the models are warm."""
        if name not in self.rerankers:
            return None
        self.model(None)
        return self.rerankers[name]

    def index(self, name: str | None) -> ServedIndex:
        """The index of a request; 404 for an unknown name, and where there is none."""
        if not self.indexes:
            raise AnswerError(404, "the server has no index; start it with --index FOLDER")
        if name is not None and name not in self.indexes:
            raise AnswerError(
                404,
                f"the index {name[:100]!r} is not here.{known(name[:100], self.indexes)}",
                param="index",
                code="index_not_found",
            )
        self.model(None)  # 503 before the models are warm
        return self.indexes[next(iter(self.indexes)) if name is None else name]
