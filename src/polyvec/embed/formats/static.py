"""Static word tables: sentence-transformers' StaticEmbedding and model2vec's folders.

The state of a token is its row of a table; there are no layers and no attention. The table runs
behind the same Backbone as other models, so poolings, templates and projections apply.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from torch import Tensor, nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutput

from polyvec.embed.formats.precision import as_stored, keep_stored_dtype
from polyvec.embed.formats.schema import read_json, write_json
from polyvec.embed.inputs.contract import bare
from polyvec.embed.inputs.tables import TableTokenizer
from polyvec.errors import ModelError

MODEL2VEC = "model2vec"
MODEL2VEC_LENGTH = 512  # most tokens that the package reads where the folder says nothing
Weights = Callable[[Path], Mapping[str, Tensor]]


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


def is_model2vec(folder: Path) -> bool:
    """Whether the folder is model2vec's own: its config.json says so."""
    config = read_json(folder / "config.json", {})
    return isinstance(config, dict) and config.get("model_type") == MODEL2VEC


def read_static(
    folder: Path, read_weights: Weights, max_length: int | None = None
) -> tuple[StaticTable, TableTokenizer]:
    """The table and the tokenizer of a folder; ModelError names a file that cannot be read.

    Special tokens are not added: the vectors are means over words only. A folder of model2vec
    is read as that package reads it.
    """
    words = folder / "tokenizer.json"
    if not words.is_file():
        raise ModelError(f"{words} is missing")
    try:
        rows_VD = _rows(read_weights(folder), folder)
        backend = Tokenizer.from_file(str(words))
    except ModelError:
        raise
    except (IndexError, RuntimeError) as error:  # mapping and weights of another number
        raise ModelError(f"{folder}: {' '.join(str(error).split())[:200]}") from None
    except Exception as error:  # noqa: BLE001 - the Rust tokenizer raises bare Exception
        raise ModelError(f"{words}: {' '.join(str(error).split())[:200]}") from None
    if rows_VD.ndim != 2:
        raise ModelError(f"{folder}: the table has shape {tuple(rows_VD.shape)}, expected [V, D]")
    if len(rows_VD) < backend.get_vocab_size():
        raise ModelError(
            f"{folder}: {len(rows_VD)} rows for {backend.get_vocab_size()} tokens of the tokenizer"
        )
    as_model2vec = is_model2vec(folder)
    cut = backend.truncation or {}  # sentence-transformers obeys the file's own truncation
    declared = cut.get("max_length")
    if as_model2vec:
        declared = read_json(folder / "config.json").get("max_length", MODEL2VEC_LENGTH)
    side = "right" if as_model2vec else cut.get("direction", "right")
    backend.no_truncation()
    # The file's own post-processor may add [CLS] and [SEP].
    backend.post_processor = processors.Sequence([])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, truncation_side=side)
    table = StaticTable(rows_VD).eval()
    if (folder / "model.safetensors").is_file():
        keep_stored_dtype(table, folder / "model.safetensors")
    return table, TableTokenizer(
        tokenizer, max_length=max_length or declared, as_model2vec=as_model2vec
    )


def write_static(
    model: StaticTable, tokenizer: TableTokenizer, folder: Path, *, normalize: bool
) -> None:
    """The files of a StaticEmbedding module, or model2vec's own."""
    rows_VD = model.embedding.weight.detach().contiguous()
    rows_VD = (as_stored(model, {"": rows_VD}) or {"": rows_VD})[""]
    name = "embeddings" if tokenizer.as_model2vec else "embedding.weight"
    save_file({name: rows_VD}, folder / "model.safetensors")
    words = bare(tokenizer.hf)
    if tokenizer.as_model2vec:
        config = {
            "model_type": MODEL2VEC,
            "architectures": ["StaticModel"],
            "hidden_dim": rows_VD.shape[1],
            "normalize": normalize,
            "max_length": tokenizer.max_length,
        }
        write_json(folder / "config.json", config)
    elif tokenizer.max_length is not None:
        words.enable_truncation(tokenizer.max_length, direction=tokenizer.hf.truncation_side)
    words.save(str(folder / "tokenizer.json"))


def _rows(found: Mapping[str, Tensor], folder: Path) -> Tensor:
    """The table; in model2vec's files tokens may share rows and have weights."""
    if "embedding.weight" in found:
        return found["embedding.weight"].float()
    if "embeddings" not in found:
        raise ModelError(
            f"{folder}: expected a tensor embedding.weight or embeddings, got {sorted(found)}"
        )
    rows_VD = found["embeddings"].float()
    if "mapping" in found:
        rows_VD = rows_VD[found["mapping"].long()]
    if "weights" in found:
        rows_VD = rows_VD * found["weights"].to(torch.float32)[:, None]
    return rows_VD
