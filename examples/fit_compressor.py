"""Train what rates the words of a text: a classifier on questions, or a policy on a reward.

    python examples/fit_compressor.py classifier --data DATA -o compressors/classifier
    python examples/fit_compressor.py policy --data DATA -o compressors/policy

Data: DATA/fairytaleqa, whose training split has sections of stories, questions and answers. The
classifier (LLMLingua-2) learns to keep words that questions on a section, or their answers, have in
common with it; with --ask it reads the question and keeps the sentence with the answer. The
policy (PCRL) learns to drop what SmolLM2 does not need for the same answer to a short text.
"""

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

from polyvec.compress.text.fitting import fit_policy, fit_token_classifier, new_classifier
from polyvec.compress.text.labels import Labelled, by_questions
from polyvec.compress.text.units import sentences
from polyvec.data.texts import find_file, read_jsonl
from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL, load_language_model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("classifier", "policy"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--ask", action="store_true", help="let the classifier read the question")
    parser.add_argument("--rows", type=int, default=1500, help="sections, or questions with --ask")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=60, help="of the policy")
    parser.add_argument("--model", default=DEFAULT_LANGUAGE_MODEL, help="what the policy asks")
    options = parser.parse_args()
    if options.what == "classifier":
        classifier = new_classifier(with_question=options.ask)
        rows = labelled(options.data, options.rows, options.ask)
        fit_token_classifier(rows, classifier, epochs=options.epochs, on_step=shown)
    else:
        classifier = policy(options)
    classifier.save(options.output)
    print(f"\n{options.output}: saved", file=sys.stderr)


def stories(data: Path) -> dict[str, list[tuple[str, list[str]]]]:
    """Sections of the training split with their questions and answers."""
    folder = data / "fairytaleqa"
    texts = {row["_id"]: row["text"] for _, row in read_jsonl(find_file(folder, "corpus.jsonl"))}
    found = defaultdict(list)
    for _, row in read_jsonl(find_file(folder, "queries.train.jsonl")):
        if len(row["positives"]) == 1:
            found[texts[row["positives"][0]]].append((row["text"], row["answers"]))
    return found


def labelled(data: Path, count: int, ask: bool) -> list[Labelled]:
    sections = stories(data)
    rows = []
    for text, asked in sections.items():
        questions = [question for question, _ in asked]
        answers = [answer for _, each in asked for answer in each]
        if ask:
            rows += [row for question, each in asked for row in _sentence(text, question, each)]
        else:
            rows.append(by_questions(text, questions, answers))
    random.Random(0).shuffle(rows)
    return rows[:count]


def _sentence(text: str, question: str, answers: list[str]) -> list[Labelled]:
    """The sentence with an answer, if it is in the text word for word."""
    place = next((p for a in answers if (p := text.lower().find(a.lower())) >= 0), None)
    if place is None:
        return []
    keep = [span for span in sentences(text) if span[0] <= place < span[1]]
    return [Labelled(text, tuple(keep), question)]


def policy(options: argparse.Namespace) -> object:
    import torch

    model = load_language_model(options.model)
    prompts = [
        f"{text[:400].rpartition('.')[0]}.\nQuestion: {asked[0][0]}\nAnswer:"
        for text, asked in list(stories(options.data).items())[: options.rows]
    ]

    def respond(texts: "list[str]") -> list[str]:
        found = model.generate([each or " " for each in texts], max_new_tokens=12, stop="\n")
        return [each.text for each in found]

    torch.manual_seed(0)
    classifier = new_classifier()
    with torch.no_grad():  # begin with keeping nearly all
        classifier.model.get_submodule("classifier").bias.copy_(torch.tensor([-1.0, 1.0]))
    fit_policy(prompts[:64], respond, classifier, steps=options.steps, on_step=shown)
    return classifier


def shown(step: int, found: object) -> None:
    if step % 10 == 0:
        print(f"\r{step} {found}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
