"""What requests hold and answers give, as OpenAI, Cohere and Jina have them.

A request with a field that is not known is refused, as OpenAI does: a misspelt one would else
change vectors in silence. Fields beyond OpenAI's: input_type, prompt, prompt_name, truncate.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from polyvec.serve.reading import too_large

Inputs = list[str] | list[list[int]]
MOST_IDS = 2**31


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may hold, as the context of its validation."""

    texts: int
    ids: int


def read_inputs(given: Any, info: ValidationInfo) -> Inputs:
    """A list of texts or of token ids; of one text or one list of ids a list of one."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if _is_id(given[0]):
            given = [given]
        _check_number(given, info)
        if all(isinstance(each, str) for each in given):
            return given
        if all(isinstance(each, list) and each and all(map(_is_id, each)) for each in given):
            return given
    raise ValueError(
        "expected a string, a list of strings, a list of token ids, or a list of such lists, none "
        "of them empty"
    )


def _check_number(given: list[Any], info: ValidationInfo) -> None:
    """Refuse too many texts or ids before each is looked at."""
    if not isinstance(info.context, Limits):
        return
    most = info.context
    if len(given) > most.texts:
        raise ValueError(f"{len(given)} texts, at most {most.texts} a request; send several")
    ids = sum(len(each) for each in given if isinstance(each, list))
    if ids > most.ids:
        raise too_large(ids, most.ids)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_IDS


# A text holds more than blanks.
TEXT = {"type": "string", "pattern": r"\S"}
ID = {"type": "integer", "minimum": 0, "exclusiveMaximum": MOST_IDS}
IDS = {"type": "array", "minItems": 1, "items": ID}
Input = Annotated[
    Any,
    BeforeValidator(read_inputs),
    WithJsonSchema(
        {
            "anyOf": [
                TEXT,
                {"type": "array", "minItems": 1, "items": TEXT},
                IDS,
                {"type": "array", "minItems": 1, "items": IDS},
            ]
        }
    ),
]
Documents = Annotated[
    list[Any],
    BeforeValidator(lambda given, info: read_documents(given, info)),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    TEXT,
                    {"type": "object", "properties": {"text": TEXT}, "required": ["text"]},
                ]
            },
        }
    ),
]


def read_documents(given: Any, info: ValidationInfo) -> list[str]:
    """Texts; each a string, or an object with "text"."""
    if isinstance(given, list) and given:
        _check_number(given, info)
        found = [each.get("text") if isinstance(each, dict) else each for each in given]
        texts = [each for each in found if isinstance(each, str)]
        if len(texts) == len(found):
            return texts
    raise ValueError('expected a list of strings, or of objects with "text"')


Query = Annotated[str, WithJsonSchema(TEXT)]


class Request(BaseModel):
    """Refuses what is not a field, and converts nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ModelRequest(Request):
    """A request to a model."""

    model: str | None = Field(None, description="default: the server's first model")


class TextRequest(ModelRequest):
    """Texts, and how they are read."""

    input: Input
    input_type: Literal["query", "document"] | None = Field(
        None, description="which of the model's prompts is used; default: none"
    )
    prompt: str | None = Field(None, description="in place of the model's prompts")
    prompt_name: str | None = Field(None, description="one of the model's prompts")
    truncate: bool | None = Field(
        None, description="cut texts that are longer than the model reads, in place of an error"
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> "TextRequest":
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("prompt and prompt_name exclude one another")
        return self


class EmbeddingRequest(TextRequest):
    """POST /v1/embeddings, OpenAI's."""

    dimensions: int | None = Field(
        None, ge=1, lt=2**31, description="keep the first ones, of length 1"
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="default: float")
    user: str | None = None


class SparseRequest(TextRequest):
    """POST /v1/sparse."""


class TokenizeRequest(TextRequest):
    """POST /tokenize."""

    truncate: bool | None = Field(
        None, description="false: an error for longer texts; default: cut, and say so"
    )


class RerankRequest(ModelRequest):
    """POST /v1/rerank, Cohere's and Jina's."""

    query: Query
    documents: Documents
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    truncate: bool | None = None
    user: str | None = None


class SearchRequest(Request):
    """POST /v1/search."""

    query: Query
    index: str | None = Field(None, description="default: the server's first index")
    top_k: int = Field(10, ge=1, le=1000)
    mode: Literal["dense", "words", "hybrid"] = "dense"
    filter: Annotated[str, Field(max_length=10_000)] | dict[str, Any] | None = Field(
        None, description='of the metadata: year >= 2020 and lang = "en"'
    )
    explain: bool = Field(False, description="which component and which words carried each result")


class SearchResult(BaseModel):
    """A text that was found."""

    id: str
    score: float
    text: str
    metadata: dict[str, str | int | float | bool]
    explanation: dict[str, Any] | None = None


class SearchResponse(BaseModel):
    """The best texts first."""

    object: Literal["list"] = "list"
    index: str
    results: list[SearchResult]


class IndexCard(BaseModel):
    """An index of the server."""

    id: str
    object: Literal["index"] = "index"
    texts: int
    model: str
    dimensions: dict[str, int]
    fields: dict[str, str]


class IndexList(BaseModel):
    """All indexes of the server."""

    object: Literal["list"] = "list"
    data: list[IndexCard]


class MapResponse(BaseModel):
    """Texts of an index as places in a square from 0 to 1."""

    x: list[float]
    y: list[float]
    id: list[str]
    text: list[str]
    value: list[str | int | float | bool | None]
    how: str
    total: int


class Usage(BaseModel):
    """Tokens that the model has read."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """A vector: numbers, or little-endian float32 as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingResponse(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class SparseValues(BaseModel):
    """The numbers that are not zero, and where they are."""

    indices: list[int]
    values: list[float]


class SparseEmbedding(BaseModel):
    """A vector of a sparse model."""

    object: Literal["sparse_embedding"] = "sparse_embedding"
    index: int
    embedding: SparseValues


class SparseResponse(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[SparseEmbedding]
    model: str
    usage: Usage


class RerankDocument(BaseModel):
    """A document of the request."""

    text: str


class RerankResult(BaseModel):
    """A document by its place in the request."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankResponse(BaseModel):
    """The best documents first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage


class TokenizedText(BaseModel):
    """What the model reads of a text, prompt and special tokens included."""

    index: int
    ids: list[int]
    tokens: list[str]
    truncated: bool


class TokenizeResponse(BaseModel):
    """Tokens of each text, in order."""

    object: Literal["list"] = "list"
    data: list[TokenizedText]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """A model of the server; a reranker has no dimensions."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "polyvec"
    dimensions: int | None
    max_tokens: int | None
    kind: Literal["dense", "sparse", "reranker"]


class ModelList(BaseModel):
    """All models of the server."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    """What was wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """An error."""

    error: ErrorBody
