"""Write the generated parts of README.md and docs/, between markers, from recipes and results.

python docs/generate.py            # write
python docs/generate.py --check    # exit 1 if a file would change
"""

import json
import sys
from pathlib import Path

from polyvec.embed.sections import EMBEDDER, RELEASED
from polyvec.embed.settings import template_of
from polyvec.evaluate import published
from polyvec.evaluate.sections import EXPECT
from polyvec.evaluate.tasks import Result
from polyvec.recipe import all_recipes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "all-minilm-l6-v2.json"

# The tasks in the README, out of all with a published score.
SHOWN = ("sts12", "sts16", "stsb", "sick-r", "scifact", "nfcorpus", "arguana", "cosqa", "xnli")
SHOWN += ("tatoeba", "ntrex", "amazon-counterfactual", "sib200", "sib200-clustering", "xquad")
MEASURES = {
    "spearman": "Spearman",
    "ndcg@10": "nDCG@10",
    "accuracy": "accuracy",
    "v_measure": "V-measure",
    "max_ap": "average precision",
    "f1": "F1",
}


def scores_table() -> str:
    """Published and measured scores of the default model, one row for each task."""
    raw = json.loads(RESULTS.read_text())["results"]
    found = {row.task: row for row in published.rows(Result(**each) for each in raw)}
    lines = [
        "| official task | sets | measure | published | measured | difference | known difference |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for row in (found[name] for name in SHOWN if name in found):
        measure = MEASURES[row.largest.main_measure]
        difference = round(row.ours - row.published, 2) + 0
        lines.append(
            f"| {row.official_task} | {row.num} | {measure} | {row.published:.2f} | {row.ours:.2f} "
            f"| {difference:+.2f} | {row.known_difference if row.beyond else ''} |"
        )
    return "\n".join(lines)


def systems_table() -> str:
    """Every recipe: its parts and its measured scores."""
    lines = [
        "| recipe | system | attention | template | pooling | backbone | paper "
        "| measured at scale nano |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for recipe in all_recipes():
        parts = recipe[EMBEDDER]
        pooling = parts.pooling if isinstance(parts.pooling, str) else "+".join(parts.pooling)
        if parts.normalize:
            pooling += ", normalised"
        figures = recipe[EXPECT].get("nano", {})
        measured = "; ".join(f"{name} {100 * f.measured:.2f}" for name, f in figures.items())
        name = f"[`{recipe.key}`](../{recipe.path.relative_to(ROOT)})"
        template = template_of(parts)
        lines.append(
            f"| {name} | {recipe.system.name} | {parts.attention} "
            f"| {template.name if template else ''} | {pooling} | `{parts.backbone}` "
            f"| {recipe.system.paper} | {measured} |"
        )
    return "\n".join(lines)


def released_table() -> str:
    """Every recipe of the survey's Table 4, and what of it was compared with the authors' code."""
    lines = [
        "| row of Table 4 | recipe | form | compared with | equal | differs | published weights |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    recipes = [recipe for recipe in all_recipes() if recipe.system.table == 4]
    for recipe in sorted(recipes, key=lambda each: (each.system.reference or 0, each.key)):
        found = recipe[RELEASED]
        name = f"[`{recipe.key}`](../{recipe.path.relative_to(ROOT)})"
        row = [f"{recipe.system.name} [{recipe.system.reference}]", name]
        if found is None:
            row += ["", "", "not compared", "", ""]
        else:
            equal = ", ".join(found.compared) or f"not compared: {found.why}"
            weights = f"`{found.checkpoint}`" if found.checkpoint else ""
            row += [found.form, found.code, equal, found.differs, weights]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def layouts_table() -> str:
    """Folders that load, and what they were compared with; then folders that are refused."""
    found = json.loads((ROOT / "docs" / "results" / "layouts.json").read_text("utf-8"))
    loads = {name: row for name, row in found.items() if "refused" not in row}
    lines = [
        f"{len(found)} layouts, of which {len(loads)} load.",
        "",
        "| folder | models like it | vectors | compared with | largest difference, float32 "
        "| cosine, bfloat16 |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    for name, row in loads.items():
        like = ", ".join(f"`{each}`" for each in row["like"])
        lines.append(
            f"| {name} | {like} | {row['kind']} | {row['answer']} | {row['float32']} "
            f"| {row.get('bfloat16', '')} |"
        )
    lines += ["", "| refused | models like it | error |", "| --- | --- | --- |"]
    for name, row in found.items():
        if "refused" in row:
            like, error = ", ".join(f"`{each}`" for each in row["like"]), row["refused"]
            lines.append(f"| {name} | {like} | {error.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


BASELINES = ("causal-mean", "causal-last")


def training_free_table() -> str:
    """Measured scores of each training-free recipe, and its gain over plain pooling."""
    path = ROOT / "docs" / "results" / "training-free.json"
    if not path.exists():
        return "Not measured yet."
    found = json.loads(path.read_text())
    columns = ("stsb dev", "stsb test", "scifact part")
    lines = [
        "| recipe | STS-B dev | over mean | over last | STS-B test | SciFact, part: nDCG@10 "
        "| over mean | over last |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, scores in found.items():
        if not any(column in scores for column in columns):
            continue
        dev, test, part = (scores.get(column) for column in columns)
        gains = [
            _gain(value, found[base].get(column))
            for value, column in ((dev, columns[0]), (part, columns[2]))
            for base in BASELINES
        ]
        figures = [_percent(dev), *gains[:2], _percent(test), _percent(part), *gains[2:]]
        lines.append(f"| `{key}` | " + " | ".join(figures) + " |")
    for key, scores in found.items():
        if not any(column in scores for column in columns):
            each = "; ".join(f"{name} {100 * value:.2f}" for name, value in scores.items())
            lines.append(f"\n`{key}`: {each}.")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _gain(value: float | None, base: float | None) -> str:
    return "" if value is None or base is None else f"{100 * (value - base):+.2f}"


PARTS = {
    ROOT / "README.md": {"scores": scores_table},
    ROOT / "docs" / "systems.md": {"systems": systems_table, "released": released_table},
    ROOT / "docs" / "models.md": {"layouts": layouts_table},
    ROOT / "docs" / "embedders.md": {"training-free": training_free_table},
}


def generated(path: Path) -> str:
    """The text of a file with its generated parts replaced."""
    text = path.read_text("utf-8")
    for name, make in PARTS[path].items():
        begin, end = f"<!-- {name}: generated by docs/generate.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{make()}\n\n{end}{after}"
    return text


def main() -> None:
    stale = [path for path in PARTS if generated(path) != path.read_text("utf-8")]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(map(str, stale))}" if stale else 0)
    for path in stale:
        path.write_text(generated(path), "utf-8")
        print(path)


if __name__ == "__main__":
    main()
