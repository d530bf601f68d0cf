"""What an audit's figures mean, in sentences."""

import math
from dataclasses import dataclass

from polyvec.invert.audit.run import NO_DEFENCE, Attacked, Audit

# F1 of content words above what is found without the vector.
LEAKS, LEAKS_MUCH = 0.05, 0.25
# OWASP AISVS 8.4.3, draft of 1.0: share of tokens protected, and utility that may be lost.
PROTECTED, LOST = 0.99, 0.03


@dataclass(frozen=True, slots=True)
class DefenceRow:
    """The strongest attacker behind a defence, how much of the tokens it protects, and the share
    of utility that is lost, the most over the measures. protected: of what the vector gives away
    beyond the baseline without a defence, the share that is not found any more; None where that is
    no more than chance. lost: None where no measure was above 0 without a defence."""

    defence: str
    strongest: Attacked
    protected: float | None
    lost: float | None

    @property
    def meets_aisvs(self) -> bool:
        if self.protected is None or self.lost is None:
            return False
        return self.protected >= PROTECTED and self.lost <= LOST


def strongest(audit: Audit, defence: str) -> Attacked:
    """The attack with the highest F1, the one that writes texts where several are equal."""
    return max(audit.of(defence), key=lambda each: (each.f1, bool(each.texts)))


def baseline(audit: Audit) -> float:
    """F1 without the vector: of the language model, of another text's vector, of frequent words."""
    return max(each.f1 for each in audit.of(NO_DEFENCE, baselines=True))


def defence_rows(audit: Audit) -> list[DefenceRow]:
    """Each defence, those that protect most first."""
    start = baseline(audit)
    gained = strongest(audit, NO_DEFENCE).f1 - start
    found = []
    for name, scores in audit.utility.items():
        best = strongest(audit, name)
        protected = None
        if gained >= LEAKS:  # a share of nothing would be any number
            protected = 1 - min(1.0, max(0.0, (best.f1 - start) / gained))
        losses = [
            1 - scores[measure] / before if math.isfinite(scores[measure]) else 1.0
            for measure, before in audit.utility[NO_DEFENCE].items()
            if before > 0
        ]
        found.append(DefenceRow(name, best, protected, max(0.0, *losses) if losses else None))
    return sorted(found, key=lambda each: (-(each.protected or 0.0), each.lost or 0.0))


def verdict(audit: Audit) -> list[str]:
    """Sentences: what is given away, whether a defence helps, what to do."""
    best, start = strongest(audit, NO_DEFENCE), baseline(audit)
    gain = best.f1 - start
    how = (
        f"F1 of content words {100 * best.f1:.0f} % ({best.attack}), {100 * start:.0f} % without "
        "the vector"
    )
    if gain < LEAKS:
        lines = [f"No attack found more than chance: {how}. A stronger attacker may."]
    elif gain < LEAKS_MUCH:
        lines = [f"The vectors give away part of the texts: {how}."]
    else:
        lines = [f"The vectors give away much of the texts: {how}."]
    exact = max(float(each.leakage.get("exact_match") or 0) for each in audit.of(NO_DEFENCE))
    if exact:
        lines.append(f"{100 * exact:.0f} % of the texts were found word for word.")
    personal = {
        kind: (count, share)
        for each in audit.of(NO_DEFENCE)
        for kind, (count, share) in each.personal.items()
        if each.attack == "inverter"
    }
    if personal:
        kinds = ", ".join(f"{k} {100 * s:.0f} % of {n}" for k, (n, s) in personal.items())
        lines.append(f"Personal data found whole: {kinds}.")
    else:
        lines.append("No personal data stands in the attacked texts, so none could be found.")
    rows = [each for each in defence_rows(audit) if each.defence != NO_DEFENCE]
    if gain < LEAKS:
        return lines  # nothing to protect
    good = [each for each in rows if each.meets_aisvs]
    if good:
        protected, lost = good[0].protected or 0.0, good[0].lost or 0.0
        lines.append(
            f"{good[0].defence} protects {100 * protected:.0f} % of it from every attacker that "
            f"was tried and costs {100 * lost:.1f} % of the utility."
        )
    elif rows:
        lines.append(
            "No defence of vectors both protects 99 % of it and keeps 97 % of the utility."
        )
    return lines


TO_DO = (
    "Give vectors the access rights of the texts that they were made of; whoever may not read a "
    "text may not read its vector.",
    "Take personal data out of texts before they are embedded: what is not in a text is not in "
    "its vector.",
    "Encrypt vectors at rest, with a key that those who run the database do not have.",
    "Do not return vectors from search; return ids, and log and limit queries.",
    "Take a secret rotation for what it is: it stops who reads the vectors as they are, and falls "
    "to some leaked pairs, or to vectors of texts like yours without any; see the leaked rows.",
    "Judge noise by an attacker who knows it: see the adaptive and retrained rows.",
    "Repeat this audit when the model changes, and compare audit.json (a release gate).",
)
