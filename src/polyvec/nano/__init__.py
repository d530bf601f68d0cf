"""polyvec-nano: the small language models inside the package, for tests and nano-scale recipes.

docs/nano.md describes their training data and their quality.
"""

import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from polyvec.errors import ModelError
from polyvec.storage.files import cache_folder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, T5ForConditionalGeneration

__all__ = ["nano_lm", "nano_lm_path", "nano_moe_path", "nano_t5", "nano_t5_path"]


def nano_lm_path() -> Path:
    """Folder of the causal language model, readable by any Hugging Face loader.

    Raises ModelError if the weights are missing from the installation.
    """
    return _folder("nano-lm")


def nano_t5_path() -> Path:
    """Folder of the encoder-decoder, readable by any Hugging Face loader.

    Raises ModelError if the weights are missing from the installation.
    """
    return _folder("nano-t5")


def nano_moe_path() -> Path:
    """Folder of the mixture-of-experts version of nano-lm, which is not shipped.

    It is $POLYVEC_NANO_MOE or, by default, polyvec/nano-moe in the user's cache folder.
    Raises ModelError with the command that creates it.
    """
    default = cache_folder("nano-moe")
    folder = Path(os.environ.get("POLYVEC_NANO_MOE", default))
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"nano-moe: no weights in {folder}. Create them from nano-lm (3 minutes on two cores): "
            f"python examples/pretrain_nano.py moe --minutes 3 --out {folder.parent}"
        )
    return folder


def nano_lm() -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    """The causal language model in float32, in eval mode, and its tokenizer.

    >>> model, tokenizer = nano_lm()
    >>> ids = tokenizer("It was a dark and stormy", return_tensors="pt").input_ids
    >>> model.generate(ids, max_new_tokens=8, do_sample=False).shape[1] <= ids.shape[1] + 8
    True
    """
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    path = nano_lm_path()
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(path)


def nano_t5() -> "tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]":
    """The encoder-decoder in float32, in eval mode, and its tokenizer.

    It was only trained to fill spans: "The <extra_id_0> sat" -> "<extra_id_0> cat".
    """
    import torch
    from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

    path = nano_t5_path()
    model = T5ForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(path)


def _folder(name: str) -> Path:
    folder = Path(str(files("polyvec") / "nano" / name))
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"{name}: no weights in {folder}. Reinstall polyvec, or train them: "
            "python examples/pretrain_nano.py --help"
        )
    return folder
