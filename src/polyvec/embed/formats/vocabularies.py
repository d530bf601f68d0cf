"""Vocabularies without tokenizer.json: vocab.txt, vocab.json with merges.txt, sentencepiece.

transformers converts them by the class that the folder names. What it gives is compared with the
file: it invents a vocabulary where the class reads another file (SILENT row 34), and leaves out
what a sentencepiece file says of spaces.
"""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from polyvec.embed.formats.schema import read_json
from polyvec.embed.inputs.contract import PROBES, bare
from polyvec.errors import MissingExtraError, TokenizerError

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
VOCABULARIES = ("vocab.txt", "vocab.json", "tekken.json", *SENTENCEPIECE)
# Their makers' code lower-cases, strips accents or splits before sentencepiece reads a text.
OWN_STEPS = ("Albert", "XLNet", "Nllb", "MBart50", "Reformer", "Rembert", "RemBert")
# Their makers' code adds BOS unless tokenizer_config.json says otherwise.
BOS_BY_DEFAULT = ("Llama", "CodeLlama", "Gemma")
LLAMA_TYPES = ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text")


def convert(
    root: Path, name: str, trust_remote_code: bool, options: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder without tokenizer.json, of the class `name`.

    Raises TokenizerError if there is no vocabulary, or if the class reads it otherwise than
    the file says, and MissingExtraError without sentencepiece.
    """
    file = next((root / each for each in VOCABULARIES if (root / each).is_file()), None)
    if file is None:
        raise TokenizerError(
            f"{root}: no tokenizer (neither tokenizer.json nor {', '.join(VOCABULARIES)}); copy "
            "these files from the base model"
        )
    if file.name in SENTENCEPIECE:
        for package in ("sentencepiece", "google.protobuf"):
            if not _is_installed(package):
                raise MissingExtraError(package, "sentencepiece", f"converting {file}")
    found = AutoTokenizer.from_pretrained(root, trust_remote_code=trust_remote_code, **options)
    _check_tokens(found, file)
    if file.name in SENTENCEPIECE and found.is_fast:
        _follow_sentencepiece(found, file, name.removesuffix("Tokenizer"))
    return found


def promised_by_class(root: Path, name: str) -> dict[str, bool]:
    """What a class adds where tokenizer_config.json does not say."""
    kind = read_json(root / "config.json", {}).get("model_type")
    converted = any((root / each).is_file() for each in SENTENCEPIECE)
    adds = name.removesuffix("Tokenizer") in BOS_BY_DEFAULT or kind in LLAMA_TYPES
    return {"add_bos_token": True} if converted and adds else {}


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the parent package
        return False


def _check_tokens(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Raises TokenizerError if the tokenizer does not have the file's tokens (SILENT row 34)."""
    found = tokenizer.get_vocab()
    expected = _tokens(file)
    lost = [t for t, i in expected.items() if (t not in found if i is None else found.get(t) != i)]
    # Converters leave out or rename a few control tokens of sentencepiece.
    if len(lost) > (0.05 * len(expected) + 3 if file.name in SENTENCEPIECE else 0):
        raise TokenizerError(
            f"{file}: {type(tokenizer).__name__} does not hold {len(lost)} of its "
            f"{len(expected)} tokens, such as {lost[0]!r}; check tokenizer_class in "
            "tokenizer_config.json, or convert the tokenizer to tokenizer.json"
        )


def _tokens(file: Path) -> dict[str, int | None]:
    """The tokens of a vocabulary file; sentencepiece's get their ids from the converter."""
    if file.suffix == ".txt":
        lines = file.read_text("utf-8").split("\n")
        return {token.rstrip("\r"): i for i, token in enumerate(lines) if token.strip()}
    if file.name == "vocab.json":
        return dict(read_json(file))
    if file.name in SENTENCEPIECE:
        pieces = _processor(file)
        return {pieces.id_to_piece(i): None for i in range(pieces.get_piece_size())}
    return {}


def _processor(file: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(file))


def _follow_sentencepiece(tokenizer: PreTrainedTokenizerBase, file: Path, family: str) -> None:
    """Treat spaces as the file says, where the converted tokenizer reads a probe otherwise."""
    flags = ("do_lower_case", "split_by_punct")
    own_steps = family in OWN_STEPS or any(tokenizer.init_kwargs.get(flag) for flag in flags)
    if own_steps or _reads_alike(tokenizer, file, PROBES):
        return
    backend, proto = tokenizer.backend_tokenizer, _proto(file)
    backend.normalizer = _normalizer(proto.normalizer_spec)
    backend.pre_tokenizer = None  # the model itself never crosses a space
    if isinstance(backend.model, models.BPE):
        backend.model.byte_fallback = proto.trainer_spec.byte_fallback
        backend.model.unk_token = proto.pieces[proto.trainer_spec.unk_id].piece
    # tokenizers' map of characters differs from sentencepiece's on a few combining characters.
    if not _reads_alike(tokenizer, file, [probe for probe in PROBES if probe.isascii()]):
        raise TokenizerError(
            f"{file}: transformers converts it to a tokenizer with other tokens than "
            "sentencepiece's own; convert it to tokenizer.json with the maker's code"
        )


def _reads_alike(tokenizer: PreTrainedTokenizerBase, file: Path, probes: Iterable[str]) -> bool:
    """Whether every probe has the same pieces as in sentencepiece."""
    pieces, backend = _processor(file), bare(tokenizer)
    unknown = {tokenizer.unk_token, pieces.id_to_piece(pieces.unk_id())}

    def known(tokens: Iterable[str | None]) -> list[str | None]:
        return [None if token in unknown else token for token in tokens]

    return all(
        known(map(backend.id_to_token, backend.encode(probe, add_special_tokens=False).ids))
        == known(map(pieces.id_to_piece, pieces.encode(probe)))
        for probe in probes
    )


def _proto(file: Path) -> Any:
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(file.read_bytes())
    return proto


def _normalizer(spec: Any) -> normalizers.Normalizer:
    """sentencepiece's own steps: its map of characters, spaces, the space before the first word."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
