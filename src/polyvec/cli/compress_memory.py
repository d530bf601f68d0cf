"""`polyvec compress --memory DIR`: contexts become vectors, a file each."""

import argparse
import json
import sys
from collections.abc import Sequence

from polyvec.errors import DataError, InputError, SettingsError

# Options of text compression, which have no meaning for vectors.
OTHERS = (
    *("tokens", "threshold", "method", "unit", "model", "tokenizer", "keep", "keep_digits"),
    *("exact", "show", "html"),
)


def run(options: argparse.Namespace, contexts: Sequence[Sequence[str]]) -> None:
    """Write a memory of each context, and a line of JSON that says what it is.

    With --question the line has the decoder's answer from the memory, too.
    """
    for name in OTHERS:
        if getattr(options, name) not in (None, False, []):
            option = name.replace("_", "-")
            raise SettingsError(f"--{option} does nothing with --memory, which makes vectors")
    if options.output is None:
        raise SettingsError("--memory writes files of vectors; give their folder with -o")
    rate = None
    if options.rate is not None:
        if not 0 < options.rate < 1:
            raise SettingsError(f"--rate {options.rate:g} is not between 0 and 1")
        rate = max(1, round(1 / options.rate))
    texts = ["\n".join(each) for each in contexts]
    if not texts:
        raise InputError("no text to compress")
    if options.output.exists() and not options.output.is_dir():
        raise DataError(f"{options.output}: not a folder; memories are written to one")
    from polyvec.compress.soft.compressor import SoftCompressor

    compressor = SoftCompressor.from_pretrained(options.memory)
    memories = compressor.compress(texts, options.question, rate=rate)
    answers = [""] * len(memories)
    if options.question:
        answers = compressor.generate([options.question] * len(memories), memories)
    options.output.mkdir(parents=True, exist_ok=True)
    for number, (memory, answer) in enumerate(zip(memories, answers, strict=True)):
        file = options.output / f"{number}.safetensors"
        memory.save(file)
        row = {
            "file": file.name,
            "num_tokens_in": memory.num_context,
            "num_vectors": len(memory),
            "rate": round(memory.rate, 2),
            "bytes": memory.num_bytes,
        }
        row |= {"answer": answer} if options.question else {}
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
