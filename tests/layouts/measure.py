"""Load every layout and compare its vectors; writes docs/results/layouts.json.

python tests/layouts/measure.py
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]

import numpy as np  # noqa: E402
from layouts import Equal, Layout, Refused, all_layouts, rows  # noqa: E402

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "layouts.json"
FLOAT32, BFLOAT16 = 1e-5, 0.99  # largest difference, smallest cosine


def load(folder: Path, expected: Equal | Refused, **options: Any) -> Any:
    """The embedder of a folder, as a user loads it."""
    from polyvec import Embedder, MultiVectorEmbedder

    several = isinstance(expected, Equal) and expected.kind == "multi-vector"
    loader = MultiVectorEmbedder if several else Embedder
    folder = getattr(expected, "folder", None) or folder
    return loader.from_pretrained(folder, **{**expected.load, **options})


def largest_difference(folder: Path, expected: Equal) -> float:
    """Of a number in our float32 vectors and the reference's, relative to the largest one."""
    ours = list(rows(load(folder, expected).encode(list(expected.texts), **expected.encode)))
    theirs = list(rows(expected.reference(expected.texts)))
    shapes = [each.shape for each in ours], [each.shape for each in theirs]
    assert shapes[0] == shapes[1], f"shapes {shapes[0]}, expected {shapes[1]}"
    scale = max(1.0, *(float(np.abs(each).max()) for each in theirs))
    return max(float(np.abs(a - b).max()) / scale for a, b in zip(ours, theirs, strict=True))


def smallest_cosine(folder: Path, expected: Equal) -> float:
    """Of a bfloat16 vector with the same text's in float32."""
    found = []
    for dtype in ("float32", "bfloat16"):
        model = load(folder, expected, dtype=dtype)
        found.append(list(rows(model.encode(list(expected.texts), **expected.encode))))
    return min(
        float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))
        for a, b in zip(*found, strict=True)
        if a.any()
    )


def refusal(folder: Path, expected: Refused) -> str:
    """The error of a folder that is refused, in one line."""
    from polyvec.errors import PolyvecError

    try:
        load(folder, expected).encode(["a cat"])
    except PolyvecError as error:
        return str(error)
    raise AssertionError("the folder loads, expected an error")


def measured(each: Layout, folder: Path) -> dict[str, Any]:
    """The table's row of a layout."""
    row: dict[str, Any] = {"like": list(each.like), "answer": each.answer}
    expected = each.make(folder)
    if isinstance(expected, Refused):
        line = refusal(folder, expected).replace(str(folder), "FOLDER")
        return row | {"refused": line}
    difference = largest_difference(folder, expected)
    row |= {"kind": expected.kind, "float32": f"< {FLOAT32:g}" if difference < FLOAT32 else "no"}
    if expected.bfloat16:
        cosine = smallest_cosine(folder, expected)
        row["bfloat16"] = f"> {BFLOAT16}" if cosine > BFLOAT16 else f"{cosine:.2f}"
    return row


def main() -> None:
    found = {}
    for each in all_layouts():
        with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder = Path(root) / "model"
            folder.mkdir()
            found[each.name] = measured(each, folder)
            print(each.name, found[each.name].get("float32", "refused"), flush=True)
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
