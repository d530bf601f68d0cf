"""Does a model follow an instruction that asks for one aspect of a subject?

    python benchmarks/instruction_following.py --data DATA [MODEL or RECIPE [SCALE]]

MedQuAD's subjects (diseases, drugs) that training sets leave out: the query is the subject, the
instruction asks for its symptoms, its treatment, ... in wordings that no training row has, and the
documents are all answers about all of these subjects.

right aspect: how often an answer about the right aspect ranks first among the answers about the
    subject; `chance` is what a model that ignores instructions would get.
p-MRR: how far answers about an aspect fall once the instruction asks for another one, -1 to 1
    (FollowIR, Weller et al. 2024, arXiv:2403.15246).
nDCG@10: over all answers, averaged over instructions.
"""

import argparse
import itertools
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.data.tasks.sets import InstructionRetrievalSet
from polyvec.data.training.aspects import UNSEEN_WORDINGS, instruction
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import training_sets
from polyvec.evaluate import protocols
from polyvec.evaluate.encoder import TaskEncoder

NAME = "medquad_instructions"


@dataclass(frozen=True)
class Subjects:
    """Held-out subjects twice: with two instructions in turn, and each with its own answers."""

    changed: InstructionRetrievalSet
    own_answers: InstructionRetrievalSet
    chance: float


def held_out(folder: Path, most: int | None = None, seed: int = 0) -> Subjects:
    """The subjects that `medquad_instructions` keeps from training, or `most` of them, drawn."""
    (found,) = training_sets({"name": NAME, "part": "held_out"}, folder)
    by_subject: dict[str, list[TrainingRow]] = defaultdict(list)
    for row in found.rows:
        by_subject[row.query].append(row)
    draw = random.Random(seed)
    names = sorted(by_subject)
    if most is not None and most < len(names):
        names = sorted(draw.sample(names, most))
    texts = dict.fromkeys(
        text for name in names for row in by_subject[name] for text in row.positives
    )
    id_of = {text: f"d{number}" for number, text in enumerate(texts)}
    queries, instructions, qrels, pairs, candidates = {}, {}, {}, {}, {}
    chances = []
    for name in names:
        rows = by_subject[name]
        wordings = [draw.choice(UNSEEN_WORDINGS) for _ in rows]
        asked = [
            instruction(row.label, wording)
            for row, wording in zip(rows, wordings, strict=True)
            if row.label is not None
        ]
        judged = [{id_of[text]: 1 for text in row.positives} for row in rows]
        own = tuple(dict.fromkeys(document for each in judged for document in each))
        queries[name], instructions[name], qrels[name] = name, tuple(asked), tuple(judged)
        candidates[name] = own
        chances += [len(each) / len(own) for each in judged]
        # Each aspect, and then the next one: what was right before is not any more.
        for (first, before), (second, after) in itertools.pairwise(
            [*zip(asked, judged, strict=True), (asked[0], judged[0])]
        ):
            if any(document not in after for document in before):
                pairs[f"{name}/{first}"] = (name, (first, second), (before, after))
    corpus = {number: text for text, number in id_of.items()}
    changed = InstructionRetrievalSet(
        name=NAME,
        split="held_out",
        corpus=corpus,
        queries={key: text for key, (text, _, _) in pairs.items()},
        instructions={key: both for key, (_, both, _) in pairs.items()},
        qrels={key: both for key, (_, _, both) in pairs.items()},
        changed=True,
    )
    own_answers = InstructionRetrievalSet(
        name=NAME,
        split="held_out",
        corpus=corpus,
        queries=queries,
        instructions=instructions,
        qrels=qrels,
        candidates=candidates,
    )
    return Subjects(changed, own_answers, float(np.mean(chances)))


def measured(model: Any, subjects: Subjects) -> dict[str, float]:
    """How the model follows the instructions; see the head of the file."""
    encoder = TaskEncoder(model)
    changed = protocols.run(encoder, subjects.changed).scores
    own = protocols.run(encoder, subjects.own_answers).scores
    return {
        "right aspect": own["accuracy@1"],
        "chance": subjects.chance,
        "p-MRR": changed["p_mrr"],
        "nDCG@10": changed["ndcg@10"],
    }


def main() -> None:
    from polyvec import Embedder
    from polyvec.recipe import load_recipe

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="promptriever", help="a folder or a recipe")
    parser.add_argument("scale", nargs="?", default="nano")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--subjects", type=int, help="so many, drawn")
    options = parser.parse_args()
    if Path(options.model).is_dir():
        model = Embedder.from_pretrained(options.model)
    else:
        model = load_recipe(options.model).build(options.scale)
    for name, value in measured(model, held_out(options.data, options.subjects)).items():
        print(f"{name:13} {value:.4f}")


if __name__ == "__main__":
    main()
