"""Who sells embeddings over HTTP: a table, of what a request may hold and how it says things.

Nothing here was asked of the real services. Endpoints, limits and prices were read where `source`
says, and change without notice: `base_url` and `price` replace them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from polyvec.llm.server.address import OPENAI, Account

Shape = Literal["openai", "google", "cohere", "titan"]
# The models' map of litellm 1.106.2, read in its source.
LITELLM = "litellm 1.106.2"
MODEL_STUDIO = "alibabacloud.com/help/en/model-studio, March 2026, Singapore"


@dataclass(frozen=True, slots=True)
class Roles:
    """How a request says what its texts are for.

    parameter: the request's field; None if a prefix of the text says it.
    values: by role ("query", "document") or by MTEB's name of a kind of task, which `evaluate`
        asks for.
    default: the value if nothing is asked; "" for none.
    """

    parameter: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    default: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """One API.

    url: where it is; {region} is Amazon's.
    account: whose key it takes; for Amazon its variables are those of its bearer keys.
    auth: "bearer", "sigv4", or the name of the header that holds the key.
    shape: of its requests and replies, in `shapes`.
    max_texts, max_tokens: most of a request; tokens are estimated before they are sent.
    dimensions_field: asks for fewer dimensions; `renormalize` if the answer is not of length 1.
    truncation: the field, and its values that cut long texts and that refuse them; without one
        the API refuses them.
    roles: of the models whose names begin so; "" for the others.
    encoding: the value of `encoding_format`; "" leaves it out.
    prices: US dollars for a million tokens by model.
    """

    name: str
    url: str
    account: Account
    shape: Shape
    max_texts: int
    auth: str = "bearer"
    max_tokens: int | None = None
    dimensions_field: str = "dimensions"
    renormalize: bool = False
    truncation: tuple[str, object, object] | None = None
    roles: Mapping[str, Roles] = field(default_factory=lambda: {"": Roles()})
    encoding: str = ""
    prices: Mapping[str, float] = field(default_factory=dict)
    source: str = LITELLM
    note: str = ""

    def roles_of(self, model: str) -> Roles:
        """Those of the longest beginning of the model's name."""
        begins = [each for each in self.roles if model.startswith(each)]
        return self.roles[max(begins, key=len)]


COHERE_ROLES = Roles(
    "input_type",
    {
        "query": "search_query",
        "document": "search_document",
        "Classification": "classification",
        "Clustering": "clustering",
    },
    # Required from version 3 on. Most clients send it for queries, too, which costs quality.
    default="search_document",
)
GOOGLE_TASKS = Roles(
    "taskType",
    {
        "query": "RETRIEVAL_QUERY",
        "document": "RETRIEVAL_DOCUMENT",
        "STS": "SEMANTIC_SIMILARITY",
        "Classification": "CLASSIFICATION",
        "Clustering": "CLUSTERING",
    },
)
# gemini-embedding-2 takes no taskType. Read in the documentation of resellers of Google's API.
GOOGLE_PREFIXES = Roles(
    None,
    {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
        "STS": "task: sentence similarity | query: ",
        "Classification": "task: classification | query: ",
        "Clustering": "task: clustering | query: ",
    },
)

PROVIDERS: Mapping[str, Provider] = {
    each.name: each
    for each in (
        Provider(
            "openai",
            "https://api.openai.com/v1",
            OPENAI,
            "openai",
            max_texts=2048,
            max_tokens=300_000,
            # A third of the bytes, and the numbers exactly; OpenAI's own client asks for it.
            encoding="base64",
            prices={"text-embedding-3-small": 0.02, "text-embedding-3-large": 0.13},
        ),
        Provider(
            "google",
            "https://generativelanguage.googleapis.com/v1beta",
            Account(
                "generativelanguage.googleapis.com",
                ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
                "GOOGLE_GEMINI_BASE_URL",
            ),
            "google",
            auth="x-goog-api-key",
            max_texts=100,  # as clients have it; Google's own pages did not say
            dimensions_field="outputDimensionality",
            renormalize=True,
            roles={"": GOOGLE_TASKS, "gemini-embedding-2": GOOGLE_PREFIXES},
            prices={"gemini-embedding-001": 0.15, "gemini-embedding-2": 0.20},
            note="gemini-embedding-2 takes prefixes in place of taskType",
        ),
        Provider(
            "amazon",
            "https://bedrock-runtime.{region}.amazonaws.com",
            Account(
                "amazonaws.com", ("AWS_BEARER_TOKEN_BEDROCK",), "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"
            ),
            "titan",
            auth="sigv4",
            max_texts=1,
            prices={"amazon.titan-embed-text-v2:0": 0.02},
            note="Titan's models only; needs AWS_REGION, and keys or a bearer key",
        ),
        Provider(
            "alibaba",
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
            Account("aliyuncs.com", ("DASHSCOPE_API_KEY",), "DASHSCOPE_BASE_URL"),
            "openai",
            max_texts=10,
            encoding="float",
            prices={"text-embedding-v4": 0.07},
            source=MODEL_STUDIO,
            note="in Beijing: DASHSCOPE_BASE_URL=https://dashscope.aliyuncs.com/compatible-mode/v1",
        ),
        Provider(
            "voyage",
            "https://api.voyageai.com/v1",
            Account("api.voyageai.com", ("VOYAGE_API_KEY",), "VOYAGE_BASE_URL"),
            "openai",
            max_texts=1000,
            max_tokens=120_000,  # up to a million for some models
            dimensions_field="output_dimension",
            truncation=("truncation", True, False),
            roles={"": Roles("input_type", {"query": "query", "document": "document"})},
            prices={"voyage-4-lite": 0.02, "voyage-4": 0.06, "voyage-4-large": 0.12},
        ),
        Provider(
            "cohere",
            "https://api.cohere.com/v2",
            Account("api.cohere.com", ("COHERE_API_KEY", "CO_API_KEY"), "CO_API_URL"),
            "cohere",
            max_texts=96,
            dimensions_field="output_dimension",
            truncation=("truncate", "END", "NONE"),
            roles={"": COHERE_ROLES},
            prices={"embed-v4.0": 0.12, "embed-v5.0-fast": 0.08, "embed-v5.0-pro": 0.12},
        ),
    )
}
# http://host:port/v1#NAME: polyvec serve, vLLM, TEI, Ollama ... TEI takes 32 texts unless told
# otherwise; a server that refuses a batch as too large gets smaller ones.
ANY_SERVER = Provider(
    "server",
    "",
    OPENAI,
    "openai",
    max_texts=256,
    encoding="base64",
    source="",
    note="any server that speaks OpenAI's API",
)
