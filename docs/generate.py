"""Write the generated parts of README.md and docs/, between markers, from recipes and results.

python docs/generate.py            # write
python docs/generate.py --check    # exit 1 if a file would change
"""

import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import clustering_tables
import compression_tables
import inversion_tables
import inversion_training_tables
import load_tables
import scale_tables
import search_tables
import services_tables
import speed_tables
import synthesis_tables
import text_compression_tables

from polyvec.embed.sections import EMBEDDER, RELEASED
from polyvec.embed.settings import template_of
from polyvec.evaluate import published
from polyvec.evaluate.sections import EXPECT, Expectation
from polyvec.evaluate.tasks import Result
from polyvec.recipe import all_recipes
from polyvec.registry import arguments
from polyvec.synthesize.sections import STEPS, StepSettings
from polyvec.train.losses.part import NEEDS
from polyvec.train.losses.table import LOSSES
from polyvec.train.sections import STAGES
from polyvec.train.settings import StageSettings

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
        "| measured at scale nano | at scale small |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for recipe in all_recipes():
        parts = recipe[EMBEDDER]
        if parts is None:
            continue
        pooling = parts.pooling if isinstance(parts.pooling, str) else "+".join(parts.pooling)
        if parts.normalize:
            pooling += ", normalised"
        nano, small = (_figures(recipe[EXPECT].get(scale, {})) for scale in ("nano", "small"))
        name = f"[`{recipe.key}`](../{recipe.path.relative_to(ROOT)})"
        template = template_of(parts)
        lines.append(
            f"| {name} | {recipe.system.name} | {parts.attention} "
            f"| {template.name if template else ''} | {pooling} | `{parts.backbone}` "
            f"| {recipe.system.paper} | {nano} | {small} |"
        )
    return "\n".join(lines)


def _figures(figures: Mapping[str, Expectation]) -> str:
    return "; ".join(f"{name} {100 * each.measured:.2f}" for name, each in figures.items())


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


def augmented_table() -> str:
    """Every recipe of the survey's Table 3: what writes, filters and trains, and what differs."""
    lines = [
        "| row of Table 3 | recipe | written by the prompts | other steps | losses of the stages "
        "| differs from the paper |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    recipes = [each for each in all_recipes() if 3 in (each.system.table, *each.system.also)]
    for recipe in sorted(recipes, key=lambda each: (each.system.reference or 0, each.key)):
        system, steps = recipe.system, list(_flat(recipe[STEPS]))
        prompts = [each["prompt"] for each in steps if each["kind"] == "generate"]
        others = [each["kind"] for each in steps if each["kind"] not in ("generate", "branches")]
        losses = [loss["kind"] for stage in recipe[STAGES] for loss in stage.losses]
        mined = any(stage.mining for stage in recipe[STAGES])
        if not steps and mined:
            others = ["mining, by the stages"]
        row = [
            f"{system.name} [{system.reference}]",
            f"[`{recipe.key}`](../{recipe.path.relative_to(ROOT)})",
            ", ".join(f"`{each}`" for each in dict.fromkeys(prompts)),
            ", ".join(dict.fromkeys(others)),
            ", ".join(dict.fromkeys(losses)),
            system.differs,
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _flat(steps: Sequence[StepSettings]) -> Iterator[dict[str, Any]]:
    """A table for each step, those inside of branches among them."""
    for step in steps:
        yield {"kind": step.kind, **step.settings}
        for branch in step.settings.get("branches", ()):
            yield from branch


def stages_table() -> str:
    """Every stage of every recipe with the paper's settings."""
    lines = [
        "| recipe | stage | losses (temperature) | trained | batch | tokens: query, document "
        "| learning rate | length |",
        "| --- | --- | --- | --- | ---: | --- | ---: | --- |",
    ]
    for recipe in (each for each in all_recipes() if each[EMBEDDER] is not None):
        for number, stage in enumerate(recipe[STAGES], 1):
            name = f"[`{recipe.key}`](../{recipe.path.relative_to(ROOT)})" if number == 1 else ""
            lines.append("| " + " | ".join([name, *_stage(stage)]) + " |")
    return "\n".join(lines)


def _stage(stage: StageSettings) -> list[str]:
    losses = [
        each["kind"] + (f" ({each['temperature']:g})" if "temperature" in each else "")
        for each in stage.losses
    ]
    adapter = dict(stage.adapter or {"kind": "as before"})
    rank = f" {adapter['rank']}/{adapter['alpha']:g}" if "rank" in adapter else ""
    batch = f"{stage.batch_size:,}" + (f" x {stage.accumulate}" if stage.accumulate > 1 else "")
    tokens = (stage.query_max_length or stage.max_length, stage.max_length)
    trains = stage.kind not in ("prune", "merge")
    length = f"{stage.num_train_epochs:g} epochs"
    if stage.max_steps > 0:
        length = f"{stage.max_steps:,} steps"
    return [
        stage.name or stage.kind,
        ", ".join(losses),
        f"{adapter['kind']}{rank}" if trains else "nothing",
        batch,
        ", ".join("" if each is None else f"{each:,}" for each in tokens),
        f"{stage.learning_rate:g}" if trains else "",
        length if trains else "",
    ]


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


def losses_table() -> str:
    """Every loss: its formula, its settings with their defaults, and what it reads of a batch."""
    lines = ["| kind | minimises | settings | needs |", "| --- | --- | --- | --- |"]
    for name, loss in LOSSES.items():
        (formula, *_) = (inspect.getdoc(loss) or "").split("\n")
        parameters = list(inspect.signature(loss).parameters.values())
        settings = parameters if inspect.isclass(loss) else parameters[1:]
        facts = {each.name for each in arguments(loss) if each.fact}
        shown = [_setting(each) for each in settings if each.name not in facts]
        needs = [
            NEEDS[need.field] + (f" (if `{need.setting}`)" if need.setting else "")
            for need in getattr(loss, "needs", ())
        ]
        row = [f"`{name}`", formula.rstrip("."), ", ".join(shown), "; ".join(needs)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def _setting(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return f"`{parameter.name}`"
    default = parameter.default
    if isinstance(default, float):
        default = float(f"{default:.4g}")
    words = json.dumps(default).replace("null", "none")
    return f"`{parameter.name} = {words}`"


def _results(name: str) -> dict[str, Any]:
    path = ROOT / "docs" / "results" / f"{name}.json"
    empty: dict[str, Any] = {"rows": {}, "claims": [], "after": {}}
    return json.loads(path.read_text("utf-8")) if path.exists() else empty


COLUMNS = {
    "stsb dev": "STS-B dev",
    "stsb test": "STS-B test",
    "sick test": "SICK-R",
    "sts16 test": "STS16",
    "trec test": "TREC",
    "med part": "MED",
    "scifact part": "SciFact",
}


SCALES = ("small", "nano")
EFFECT_COLUMNS = {
    **COLUMNS,
    "med": "MED",
    "scifact": "SciFact",
    "medquad": "MedQuAD",
    "thousand entries": "entries",
}
# Not scores: less of them is better. What they are multiplied by, and digits.
LOWER = {"nats a token": (1, 2), "thousand entries": (1000, 1)}


def training_free_table() -> str:
    """Scores of each training-free row at scale small, and nano's STS-B beside it."""
    small, nano = _results("training-free-small"), _results("training-free-nano")
    lines = [
        f"| row | {' | '.join(COLUMNS.values())} | nano: STS-B dev | nano: STS-B test |",
        "| --- |" + " ---: |" * (len(COLUMNS) + 2),
    ]
    for key, found in small["rows"].items():
        if "stsb dev" not in found and "med part" not in found:
            continue
        beside = nano["rows"].get(key, {})
        cells = [_score(found, column) for column in COLUMNS]
        cells += [_score(beside, column) for column in ("stsb dev", "stsb test")]
        lines.append(f"| `{key}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gains_table() -> str:
    """Gains over the mean and the last token, with intervals."""
    rows = _results("training-free-small")["rows"]
    columns = ("stsb test", "trec test", "med part")
    head = [f"{COLUMNS[c]}, over the {base}" for c in columns for base in ("mean", "last token")]
    lines = ["| row | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for key, found in rows.items():
        bases = [
            found.get(column, {}).get(f"over causal-{base}")
            for column in columns
            for base in ("mean", "last")
        ]
        if any(bases):
            lines.append(f"| `{key}` | " + " | ".join(_interval(each) for each in bases) + " |")
    return "\n".join(lines)


def claims_table() -> str:
    """Each paper's claim: shown, not shown or reversed, by the data sets that agree."""
    small, nano = _results("training-free-small"), _results("training-free-nano")
    at_nano = {(each["row"], each["over"]): each for each in nano["claims"]}
    lines = [
        "| paper | claim | at scale small | at scale nano |",
        "| --- | --- | --- | --- |",
    ]
    for claim in small["claims"]:
        beside = at_nano.get((claim["row"], claim["over"]), {"by": {}})
        verdicts = [_verdict(each["by"]) for each in (claim, beside)]
        says = f"{claim['says']} (`{claim['row']}` over `{claim['over']}`)"
        lines.append(f"| {claim['paper']} | {says} | {verdicts[0]} | {verdicts[1]} |")
    return "\n".join(lines)


def _verdict(by: dict[str, list[float]]) -> str:
    """One sentence: significantly better on most data sets is shown, worse on most reversed."""
    if not by:
        return "not measured"
    better = sum(low > 0 for _, low, _ in by.values())
    worse = sum(high < 0 for _, _, high in by.values())
    word = "not shown"
    if 2 * better > len(by):
        word = "**shown**"
    elif 2 * worse > len(by):
        word = "**reversed**"
    shown = next((c for c in ("stsb test", "med part") if c in by), next(iter(by)))
    name = COLUMNS.get(shown, shown.replace("stsb", "STS-B"))
    return (
        f"{word}: better on {better} and worse on {worse} of {len(by)} data sets; "
        f"{_interval(by[shown])} on {name}"
    )


def fitted_table() -> str:
    """Whitening and removed components after each row."""
    after = _results("training-free-small")["after"]
    names = ["as it is", "whitening", "whitening to 256", "1 removed", "3 removed"]
    columns = ("stsb test", "sick test", "sts16 test")
    lines = [
        "| row | " + " | ".join(f"{COLUMNS[c]}: {name}" for c in columns for name in names) + " |",
        "| --- |" + " ---: |" * (len(names) * len(columns)),
    ]
    for key, found in after.items():
        cells = [_percent(found[column].get(name)) for column in columns for name in names]
        lines.append(f"| `{key}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def depth_table() -> str:
    """Spearman on STS-B dev, L3Prune's loss and speed by the number of layers kept."""
    found = _results("layer-probe-small")
    curves, speed = found["curves"], found["speed"]
    lines = [
        f"| layers kept | {' | '.join(curves)} | contrastive loss | times as fast |",
        "| ---: |" + " ---: |" * (len(curves) + 2),
    ]
    for depth, loss in enumerate(found["losses"], 1):
        scores = [_percent(curve[depth - 1]) for curve in curves.values()]
        cells = [*scores, f"{loss:.3f}", str(speed.get(str(depth), ""))]
        lines.append(f"| {depth} | " + " | ".join(cells) + " |")
    chosen = found["l3prune"]
    best = ", ".join(
        f"{name} {100 * max(curve):.2f} at {curve.index(max(curve)) + 1}"
        for name, curve in curves.items()
    )
    lines += ["", f"Best: {best}. L3Prune's choices: {chosen['small']} and {chosen['large']}."]
    return "\n".join(lines)


def trained_table() -> str:
    """Trained recipes of Table 4 at scale nano: each figure before and after the stages."""
    names = ("stsb test spearman", "med test ndcg@10")
    lines = [
        "| recipe | system | stages | STS-B test | gain | MED, nDCG@10 | gain |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for recipe in all_recipes():
        figures = recipe[EXPECT].get("nano", {})
        if recipe.system.table != 4 or not recipe[STAGES]:
            continue
        stages = ", ".join(stage.name or stage.kind for stage in recipe[STAGES])
        cells = [
            f"[`{recipe.key}`](../{recipe.path.relative_to(ROOT)})",
            recipe.system.name,
            stages,
        ]
        for figure in (figures.get(name) for name in names):
            if figure is None or figure.untrained is None:
                cells += ["", ""]
            else:
                before, after = 100 * figure.untrained, 100 * figure.measured
                cells += [f"{before:.1f} → {after:.1f}", f"{after - before:+.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def effects_claims_table() -> str:
    """Each paper's claim on training: shown, not shown or reversed, at both scales."""
    scales = [_results(f"training-effects-{scale}").get("experiments", {}) for scale in SCALES]
    lines = ["| paper | claim | at scale small | at scale nano |", "| --- | --- | --- | --- |"]
    for name in dict.fromkeys(name for found in scales for name in found):
        claims = [
            {
                (each["row"], each["over"], each["says"]): each
                for each in found.get(name, {}).get("claims", [])
            }
            for found in scales
        ]
        scale, made = next((*each,) for each in zip(SCALES, scales, strict=True) if name in each[1])
        paper = made[name]["paper"] + _made(made[name], scale)
        for key in dict.fromkeys(key for found in claims for key in found):
            verdicts = [_effect(found.get(key, {}).get("by", {})) for found in claims]
            row = [paper, f"{key[2]} (*{key[0]}* over *{key[1]}*)", *verdicts]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _effect(by: dict[str, list[float]]) -> str:
    """By the columns whose difference is beyond two standard errors, and beyond half a point."""
    if not set(by) <= set(LOWER):
        by = {column: value for column, value in by.items() if column not in LOWER}
    if not by:
        return "not measured"
    by = {c: (-d if c in LOWER else d, error) for c, (d, error) in by.items()}
    beyond = [value for value, error in by.values() if abs(value) > max(2 * error, 0.005)]
    better, worse = sum(value > 0 for value in beyond), sum(value < 0 for value in beyond)
    word = "not shown"
    if 2 * better > len(by):
        word = "**shown**"
    elif 2 * worse > len(by):
        word = "**reversed**"
    each = ", ".join(_difference(column, value, error) for column, (value, error) in by.items())
    return f"{word}: {each}"


def _difference(column: str, better_by: float, error: float) -> str:
    factor, digits = LOWER.get(column, (100, 1))
    shown = -better_by if column in LOWER else better_by
    spread = f" ± {factor * error:.{digits}f}" if error else ""
    return f"{_head(column)} {factor * shown:+.{digits}f}{spread}"


def _head(column: str) -> str:
    """A column's title, with what is after its comma."""
    name, comma, rest = column.partition(",")
    return EFFECT_COLUMNS.get(name, name) + comma + rest


def effects_table(scale: str) -> str:
    """Mean and standard deviation over seeds of each arm of each experiment."""
    parts = []
    for found in _results(f"training-effects-{scale}").get("experiments", {}).values():
        columns = list(dict.fromkeys(c for arm in found["arms"].values() for c in arm))
        heads = [_head(column) for column in columns]
        lines = [
            f"| {found['paper']}{_made(found, scale)} | seeds | {' | '.join(heads)} |",
            "| --- |" + " ---: |" * (len(columns) + 1),
        ]
        for arm, scores in found["arms"].items():
            seeds = max(num for _, _, num in scores.values())
            cells = [_spread(column, scores.get(column)) for column in columns]
            lines.append(f"| {arm} | {seeds} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "Not measured."


def _made(found: dict[str, Any], scale: str) -> str:
    """What an experiment was made with in place of the whole."""
    parts = [f"the first {found['layers']} layers"] if found["layers"] else []
    parts += [f"{found['steps']:.0%} of the steps"] if found["steps"] != 1 else []
    parts += ["parts of the measured sets"] if found["sets"] != scale else []
    return f" ({', '.join(parts)})" if parts else ""


def _spread(column: str, value: list[float] | None) -> str:
    if value is None:
        return ""
    mean, deviation, seeds = value
    factor, digits = LOWER.get(column, (100, 1))
    shown = f"{factor * mean:.{digits}f}"
    return shown + (f" ± {factor * deviation:.{digits}f}" if seeds > 1 else "")


def _score(found: dict[str, Any], column: str) -> str:
    return _percent(found.get(column, {}).get("score"))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _interval(gain: list[float] | None) -> str:
    if not gain:
        return ""
    value, low, high = (100 * each for each in gain)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


PARTS = {
    ROOT / "README.md": {"scores": scores_table},
    ROOT / "docs" / "systems.md": {
        "systems": systems_table,
        "released": released_table,
        "stages": stages_table,
    },
    ROOT / "docs" / "models.md": {"layouts": layouts_table},
    ROOT / "docs" / "synthesis.md": {"augmented": augmented_table},
    ROOT / "docs" / "synthesis_effects.md": {
        "table-small": lambda: synthesis_tables.recipes_table("small"),
        "table-nano": lambda: synthesis_tables.recipes_table("nano"),
        "claims": synthesis_tables.claims_table,
        "false-negatives": synthesis_tables.false_negatives_table,
        "arms": synthesis_tables.arms_tables,
        "sources": synthesis_tables.sources_table,
    },
    ROOT / "docs" / "compression.md": {
        "compressors": compression_tables.compressors_table,
        "compressed": compression_tables.compressed_table,
        "compressed facts": compression_tables.facts_table,
        "other memories": compression_tables.other_memories_table,
        "orderings": compression_tables.memory_orderings_table,
        "toys": compression_tables.toys_table,
        "text methods": text_compression_tables.methods_table,
        "text quality": text_compression_tables.quality_table,
        "text speed": text_compression_tables.speed_table,
        "text cost": text_compression_tables.cost_table,
        "memory cost": text_compression_tables.memory_cost_table,
    },
    ROOT / "docs" / "clustering.md": {
        "recipes": clustering_tables.recipes_table,
        "oracle": clustering_tables.oracle_tables,
        "model": clustering_tables.model_table,
        "k": clustering_tables.k_table,
        "size": clustering_tables.size_line,
    },
    ROOT / "docs" / "inversion.md": {
        "inversions": inversion_tables.attacks_table,
        "defences": inversion_tables.defences_table,
        "spaces": inversion_tables.spaces_table,
        "personal": inversion_tables.personal_table,
        "multilingual": inversion_tables.multilingual_table,
        "walks": inversion_tables.walks_table,
        "revealer": inversion_tables.revealer_table,
        "gradients": inversion_training_tables.gradients_table,
        "membership": inversion_training_tables.membership_table,
        "extraction": inversion_training_tables.extraction_table,
        "audits": inversion_tables.audits_table,
    },
    ROOT / "docs" / "search.md": {
        "index kinds": search_tables.kinds_table,
        "quality": search_tables.quality_table,
    },
    ROOT / "docs" / "scale.md": {
        "million": scale_tables.million_table,
        "plan": scale_tables.plan_table,
        "rates": scale_tables.figures_table,
        "predicted": scale_tables.predicted_table,
    },
    ROOT / "docs" / "speed.md": {
        "batches": speed_tables.batches_table,
        "queries": speed_tables.queries_table,
        "fast": speed_tables.fast_table,
        "start": speed_tables.start_table,
    },
    ROOT / "docs" / "losses.md": {"losses": losses_table},
    ROOT / "docs" / "serving.md": {
        "load": load_tables.load_table,
        "goodput": load_tables.goodput_line,
        "apis": services_tables.apis_table,
    },
    ROOT / "docs" / "training_effects.md": {
        "trained": trained_table,
        "claims": effects_claims_table,
        "small": lambda: effects_table("small"),
        "nano": lambda: effects_table("nano"),
    },
    ROOT / "docs" / "embedders.md": {
        "claims": claims_table,
        "training-free": training_free_table,
        "gains": gains_table,
        "fitted": fitted_table,
        "depth": depth_table,
    },
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
