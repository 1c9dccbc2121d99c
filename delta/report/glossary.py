"""The words of a report, for who does not know them."""

from __future__ import annotations

from collections.abc import Iterable

from delta.report.markup import Html, element, joined

__all__ = ["glossary"]

_WORDS = {
    "main model alone": "The small model on the private side, without any answer of the cloud.",
    "random bits": "A control: the trained cloud model is fed coin flips. What Delta gains then comes from no data.",
    "private MACs": "Multiply-adds a record on the private side: backbone, decomposition and main model.",
    "principal part": "The low-rank, low-frequency part of the intermediate values; it stays, unless it is offloaded.",
    "label leak": "What the cloud's own model predicts, the cloud knows. The prior is what it would get without any "
    "release, by always naming the commonest class.",
    "matching": "The attacker holds candidate images, one of them the right one, and knows the backbone. It ranks them "
    "by how likely each would have given the release.",
    "SSIM": "Structural similarity of two images: 1 is the same image. It misses identity: an image can be named for "
    "certain at a low SSIM.",
    "floor": "What an attack reaches that sees no release at all.",
    "tap": "What an attacker sees of a record: the release, or controls such as the raw intermediate values.",
    "ε and δ": "Parameters of differential privacy for one release of one record. Smaller bounds more; ε = 1 bounds a "
    "lot, ε = 8 little, and without noise there is no bound.",
    "μ": "How well the best test can tell two releases apart, as the distance of two bell curves: 0 is not at all. "
    "ε at δ displays it.",
    "audit": "A test on captured messages that can refute a claimed μ, and can never confirm it.",
    "membership": "Whether somebody's record was among the training records. AUC 0.5 is a coin toss.",
    "Pareto set": "The points that no other point beats in every respect.",
    "α": "The weight of the cloud's answer in the sum, fitted on held-out records of the owner. 0 ignores the cloud.",
    "median": "The middle one of the measured times. Ranges are the fastest and the slowest.",
    "log axis": "Equal steps are equal factors: each line is ten times the one before.",
}  # fmt: skip


def glossary(terms: Iterable[str]) -> Html:
    """A list of those words that a page uses, in the order above."""
    used = set(terms)
    pairs = [
        joined([element("dt", word), element("dd", text)]) for word, text in _WORDS.items() if word in used
    ]
    return element("dl", *pairs, class_="words")
