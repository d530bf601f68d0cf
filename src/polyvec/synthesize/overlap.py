"""Rows that hold a text of an evaluation set: they are refused."""

from collections.abc import Sequence
from pathlib import Path

from polyvec.data.overlap.contamination import asked
from polyvec.data.overlap.overlap import NGRAM, NONE, overlap
from polyvec.data.tasks.folder import read_folder
from polyvec.data.texts import read_texts
from polyvec.errors import DataError
from polyvec.synthesize.rows import Changed, Row


def evaluation_texts(paths: Sequence[str], split: str = "test") -> list[str]:
    """The distinct texts that evaluation sets ask about: folders of tasks, or files of texts.

    Of retrieval those are the queries: its documents may be what the rows are made of.
    """
    found: list[str] = []
    for path in paths:
        if Path(path).is_dir():
            found += asked(read_folder(path, split))
        else:
            found += [record.text for record in read_texts(path) if record.text.strip()]
    if not found:
        raise DataError(f"{', '.join(paths)}: no texts to compare the rows with")
    return list(dict.fromkeys(found))


def without_copies(rows: Sequence[Row], texts: Sequence[str]) -> Changed:
    """Rows none of whose texts is a test text, or shares 13 words in a row with one.

    Texts are compared without case and punctuation; a test text of 8 to 12 words must not be part
    of a row's text, one that is shorter must not be equal to it.
    """
    places = [(number, text) for number, row in enumerate(rows) for text in row.texts()]
    copied: dict[int, str] = {}
    found = overlap(texts, [text for _, text in places])
    for (number, _), same, gram in zip(places, found.same_rows, found.ngram_rows, strict=True):
        if same != NONE:
            copied.setdefault(number, f"a text of the evaluation data: {texts[same][:120]}")
        elif gram != NONE:
            told = f"{NGRAM} words of the evaluation data: {texts[gram][:120]}"
            copied.setdefault(number, told)
    # Short test texts inside of longer ones; each round finds the first row of each test text.
    while True:
        left = [(number, text) for number, text in places if number not in copied]
        inside = overlap((text for _, text in left), texts)
        new = {left[row][0]: i for i, row in enumerate(inside.ngram_rows.tolist()) if row != NONE}
        if not new:
            break
        for number, place in new.items():
            copied[number] = f"holds a text of the evaluation data: {texts[place][:120]}"
    changed = Changed(notes={"evaluation texts": f"{len(texts):,}"})
    for number, row in enumerate(rows):
        if number in copied:
            changed.reject(row, copied[number])
        else:
            changed.keep(row)
    return changed
