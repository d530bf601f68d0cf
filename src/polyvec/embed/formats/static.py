"""Static word tables: sentence-transformers' StaticEmbedding and model2vec's folders.

The state of a token is its row of a table; there are no layers and no attention. The table runs
behind the same Backbone as other models, so poolings, templates and projections apply.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from torch import Tensor, nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutput

from polyvec.errors import ModelError


class StaticConfig(PretrainedConfig):
    """The size of a table, under the names that configs of transformers use."""

    model_type = "polyvec_static"

    def __init__(self, vocab_size: int = 0, hidden_size: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, 0


class StaticTable(PreTrainedModel):
    """A table of word vectors as a model without layers: ids to rows, [B, T, D]."""

    config_class = StaticConfig

    def __init__(self, rows_VD: Tensor) -> None:
        super().__init__(StaticConfig(*rows_VD.shape))
        self.embedding = nn.Embedding.from_pretrained(rows_VD, freeze=False)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        states_BTD = self.embedding(input_ids)
        return BaseModelOutput(last_hidden_state=states_BTD, hidden_states=(states_BTD,))


def read_static(folder: Path) -> tuple[StaticTable, PreTrainedTokenizerFast]:
    """The table and the tokenizer of a folder; ModelError names a file that cannot be read.

    Special tokens are not added: the vectors are means over words only.
    """
    weights, words = folder / "model.safetensors", folder / "tokenizer.json"
    for path in (weights, words):
        if not path.is_file():
            raise ModelError(f"{path} is missing")
    try:
        rows_VD = _rows(load_file(weights), weights)
        backend = Tokenizer.from_file(str(words))
    except ModelError:
        raise
    except (SafetensorError, OSError, IndexError) as error:
        raise ModelError(f"{folder}: {' '.join(str(error).split())[:200]}") from None
    except Exception as error:  # noqa: BLE001 - the Rust tokenizer raises bare Exception
        raise ModelError(f"{words}: {' '.join(str(error).split())[:200]}") from None
    if len(rows_VD) < backend.get_vocab_size():
        raise ModelError(
            f"{folder}: {len(rows_VD)} rows for {backend.get_vocab_size()} tokens of the tokenizer"
        )
    # The file's own post-processor may add [CLS] and [SEP].
    backend.post_processor = processors.Sequence([])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return StaticTable(rows_VD).eval(), tokenizer


def write_static(model: StaticTable, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The two files that sentence-transformers reads."""
    rows_VD = model.embedding.weight.detach().contiguous()
    save_file({"embedding.weight": rows_VD}, folder / "model.safetensors")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _rows(found: dict[str, Tensor], path: Path) -> Tensor:
    """The table; in model2vec's files tokens may share rows and have weights."""
    if "embedding.weight" in found:
        return found["embedding.weight"].float()
    if "embeddings" not in found:
        raise ModelError(f"{path}: expected a tensor embedding.weight or embeddings")
    rows_VD = found["embeddings"].float()
    if "mapping" in found:
        rows_VD = rows_VD[found["mapping"].long()]
    if "weights" in found:
        rows_VD = rows_VD * found["weights"].to(torch.float32)[:, None]
    return rows_VD
