"""Mined rows as lines of .jsonl: sentence-transformers' columns, or whole rows of ours."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polyvec.data.texts import json_line
from polyvec.errors import DataError
from polyvec.storage.files import atomic_file
from polyvec.train.mining.miner import Mined

Line = Mapping[str, Any]
Lines = Callable[[Mined], Iterator[Line]]


def triplet(mined: Mined) -> Iterator[Line]:
    """A line for each query, positive and negative."""
    for anchor, positive, score, negatives, scores in _pairs(mined):
        for negative, own in zip(negatives, scores, strict=True):
            line = {"anchor": anchor, "positive": positive, "negative": negative}
            yield _with(mined, line, "scores", [score, own])


def n_tuple(mined: Mined) -> Iterator[Line]:
    """A line for each query and positive, with negative_1 ... negative_n.

    Queries with fewer negatives are left out.
    """
    for anchor, positive, score, negatives, scores in _pairs(mined):
        if len(negatives) == mined.settings.num_negatives:
            numbered = {f"negative_{i}": text for i, text in enumerate(negatives, 1)}
            line = {"anchor": anchor, "positive": positive, **numbered}
            yield _with(mined, line, "scores", [score, *scores])


def labeled_pair(mined: Mined) -> Iterator[Line]:
    """A line for each query and document, with label 1 or 0, or with its score."""
    texts = mined.texts
    for query, anchor in enumerate(texts.queries):
        of_positives = zip(texts.positives[query], mined.positive_scores[query], strict=True)
        of_negatives = zip(mined.negatives[query], mined.scores[query], strict=True)
        for label, documents in ((1, of_positives), (0, of_negatives)):
            for row, score in documents:
                line = {"anchor": anchor.text, "positive": texts.documents[row].text}
                value = (
                    {"score": float(score)} if mined.settings.output_scores else {"label": label}
                )
                yield {**line, **value}


def labeled_list(mined: Mined) -> Iterator[Line]:
    """A line for each query and positive: the documents, the positive first, and their labels."""
    for anchor, positive, score, negatives, scores in _pairs(mined):
        if negatives:
            line: dict[str, Any] = {"anchor": anchor, "positive": [positive, *negatives]}
            if mined.settings.output_scores:
                yield {**line, "scores": [score, *scores]}
            else:
                yield {**line, "labels": [1] + [0] * len(negatives)}


def rows(mined: Mined) -> Iterator[Line]:
    """The rows as they are trained on, in FlagEmbedding's columns, with instructions and scores.

    Each has all its positives, its own negatives if they are kept, and the mined ones.
    """
    for row in mined.mined_rows():
        line: dict[str, Any] = {"query": row.query}
        instruction = row.document_instruction
        for name, texts in (("pos", row.positives), ("neg", row.negatives)):
            line[name] = [text if instruction is None else [instruction, text] for text in texts]
        if row.teacher_scores:
            num = len(row.positives)
            line["pos_scores"] = list(row.teacher_scores[:num])
            line["neg_scores"] = list(row.teacher_scores[num:])
        if row.instruction is not None:
            line["prompt"] = row.instruction
        if row.symmetric:
            line["type"] = "symmetric_sts"
        yield line


OUTPUT_FORMATS: dict[str, Lines] = {
    "rows": rows,
    "triplet": triplet,
    "n-tuple": n_tuple,
    "labeled-pair": labeled_pair,
    "labeled-list": labeled_list,
}


def write(mined: Mapping[str, Mined], path: Path, output_format: str) -> int:
    """The lines of all data sets as a file that appears whole or not at all; their number.

    Raises DataError if there is no line to write, or a form has no place for what the rows hold.
    """
    num_lines = 0
    for each in mined.values():
        check_form(each, output_format)
    with atomic_file(path) as file:
        for each in mined.values():
            for line in OUTPUT_FORMATS[output_format](each):
                file.write(json_line(line))
                num_lines += 1
        if not num_lines:
            raise DataError(
                f"{path}: no query has {next(iter(mined.values())).settings.num_negatives} "
                "negatives, so nothing is written; lower num_negatives, or write the form 'rows'"
            )
    return num_lines


def check_form(mined: Mined, output_format: str) -> None:
    """Raises DataError for rows that would lose an instruction."""
    if output_format == "rows":
        return
    for row in mined.rows:
        if row.instruction is not None or row.document_instruction is not None:
            raise DataError(
                f"{row.place or mined.texts.name}: has an instruction, and the form "
                f"{output_format!r} has no column for it; write the form 'rows'"
            )


def _pairs(mined: Mined) -> Iterator[tuple[str, str, float, list[str], list[float]]]:
    """(query, positive, its score, negatives, their scores), queries as they first appear."""
    texts = mined.texts
    for query, anchor in enumerate(texts.queries):
        negatives, scores = mined.texts_of(query), mined.scores[query].tolist()
        documents = zip(texts.positives[query], mined.positive_scores[query], strict=True)
        for row, score in documents:
            yield anchor.text, texts.documents[row].text, float(score), negatives, scores


def _with(mined: Mined, line: Line, name: str, scores: list[float]) -> Line:
    return {**line, name: scores} if mined.settings.output_scores else line
