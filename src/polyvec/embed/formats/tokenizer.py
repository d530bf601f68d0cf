"""The tokenizer of a folder: its ids are those of the folder's own tokenizer files."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.errors import TokenizerError


def load_tokenizer(root: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; TokenizerError if it cannot be read."""
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(root, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001 - the Rust tokenizer raises bare Exception
        raise TokenizerError(
            f"{root}: cannot read the tokenizer ({' '.join(str(error).split())[:200]})"
        ) from None
