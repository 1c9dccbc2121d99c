"""The sentences of a verdict. They say what was measured, and never that something is safe.

A failed attack is evidence and no proof, and an audit can only fail to reject. So no sentence here calls a release
or a mechanism "private"; the word stands only in the fixed term "private MACs". A test holds them to it.
"""

from __future__ import annotations

from delta.report.numbers import count, decimal, epsilon_text, millions, ms, percent, signed

__all__ = [
    "audited",
    "bounded",
    "chosen_against",
    "cloud_worth",
    "dominated",
    "drawn",
    "grown",
    "guessed",
    "inferred",
    "linked",
    "matched",
    "membership",
    "nothing_proved",
    "runs_worth",
    "timed",
    "too_weak",
]


def cloud_worth(
    *,
    delta: float | None,
    alone: float | None,
    rival: float | None,
    macs: float | None,
    helps: bool | None,
    beats: bool | None,
) -> str:
    """Was the cloud worth it? Accuracies in percent.

    Args:
        delta: of main and cloud model together.
        alone: of the main model alone.
        rival: of the best model without a cloud, of the same private MACs.
        macs: private MACs of Delta.
        helps: whether Delta beats its main model beyond chance.
        beats: whether it beats the rival beyond chance.
    """
    with_cloud = f"With the cloud {percent(delta)} of the answers are right, without it {percent(alone)}"
    same = f"the same {millions(macs)} private MACs" if macs is not None else "the same private MACs"
    if delta is None or alone is None:
        return "What the cloud adds was not measured in this run."
    if helps is False:
        return f"The cloud is not worth it here. {with_cloud}: the difference is within chance."
    if helps is None:
        with_cloud += "; whether that is more than chance was not tested"
    if rival is None:
        return f"{with_cloud}. No model without a cloud was measured at {same}."
    if beats is False:
        return (
            f"The cloud is not worth it here. {with_cloud}, but a model that spends {same} on itself, and needs no "
            f"cloud, reaches {percent(rival)}."
        )
    return f"{with_cloud}; the best model without a cloud, of {same}, reaches {percent(rival)}."


def runs_worth(*, runs: int, helps: int, beats: int, low: float | None, high: float | None) -> str:
    """Several runs together.

    Args:
        runs: whose outcome is known.
        helps: of them, where Delta beats its main model beyond chance.
        beats: of them, where it also beats the best model without a cloud beyond chance.
        low: the least that the cloud added to the main model alone, in percentage points.
        high: the most.
    """
    if not runs or low is None or high is None:
        return "Whether the cloud is worth it was not tested in these runs."
    ends = dict.fromkeys((signed(low), signed(high)))
    added = f"the cloud adds {' to '.join(ends)} points to the main model alone"
    if not beats:
        return (
            f"The cloud is not worth it in any of these {count(runs)} runs: {added}, beyond chance in {count(helps)} "
            "of them, and in none is that more than a model without a cloud reaches with the same private MACs."
        )
    return (
        f"In {count(beats)} of {count(runs)} runs the cloud is worth it: {added}, and there that is more, beyond "
        "chance, than a model without a cloud reaches with the same private MACs."
    )


def guessed(accuracy: float | None, prior: float | None) -> str:
    """What the cloud's own model makes of the labels. Percent."""
    if accuracy is None:
        return "What the cloud guesses of the answers was not measured in this run."
    chance = "" if prior is None else f"; always naming the commonest class is right for {percent(prior)}"
    return (
        f"From what it is sent, the cloud by itself guesses {percent(accuracy)} of the answers{chance}. "
        "What the cloud's model predicts, the cloud knows."
    )


def bounded(*, epsilon: float | None, delta: float | None, ceiling: float | None) -> str:
    """What noise bounds of a release; without an ε nothing."""
    if epsilon is None:
        return (
            "Without noise nothing bounds what can be inferred from a release: this is empirical obfuscation, and "
            "nothing more is claimed."
        )
    at_most = "" if ceiling is None else f", at most {decimal(ceiling)} bits about its record"
    at = "" if delta is None else f" at δ = {delta:g}"
    return (
        f"Noise bounds what one release tells about its record: ε = {epsilon_text(epsilon)}{at}{at_most}. "
        "The bound holds under the conditions listed below."
    )


def matched(top1: float | None, candidates: float | None) -> str:
    """Candidate matching. Percent."""
    if top1 is None or not candidates:
        return "Whether releases can be matched to their images was not measured in this run."
    return (
        f"Whoever holds {count(candidates)} candidate images finds the right one for {percent(top1)} of the releases "
        f"(by chance: {percent(100.0 / candidates, digits=3 if candidates > 1000 else 1)})."
    )


def drawn(ssim: float | None, floor: float | None, *, looks: float | None = None) -> str:
    """Reconstruction. SSIM from 0 to 1; `looks` are the releases of a record that it was made from."""
    if ssim is None:
        return "No reconstruction was tried in this run."
    ground = "" if floor is None else f"; a drawing that needs no release at all has {decimal(floor)}"
    several = "" if looks is None or looks <= 1 else f", made from {count(looks)} releases of a record,"
    return (
        f"The best reconstruction tried{several} resembles the original at SSIM {decimal(ssim)} "
        f"(1 is the original{ground}). Another attack may do better."
    )


def too_weak(ssim: float | None, *, enough: float = 0.9) -> str | None:
    """Where the attack cannot even draw from unprotected values, its failure on a release says nothing."""
    if ssim is None or ssim >= enough:
        return None
    return (
        f"From unprotected values the same attack reaches SSIM {decimal(ssim)} alone: it is too weak to say how little "
        "leaks. Train it longer, wider, or on more records."
    )


def membership(*, auc: float | None, low: float | None, high: float | None) -> str:
    """Membership inference. AUC from 0 to 1."""
    if auc is None:
        return "Membership inference was not measured in this run."
    ends = "" if low is None or high is None else f", 95 % interval {decimal(low)} to {decimal(high)}"
    return (
        f"The strongest membership attack tried tells training records from others with AUC {decimal(auc)}{ends} "
        "(0.5 is a coin toss, 1 is always right). Another attack may do better."
    )


def inferred(
    *, question: str | None, accuracy: float | None, prior: float | None, better: bool | None
) -> str:
    """What a reader of releases tells of a label or an attribute. Percent."""
    name = question or "a value"
    if accuracy is None:
        return f"Whether a release tells the {name} was not measured in this run."
    figures = f"right for {percent(accuracy)}, by guessing {percent(prior)}"
    if better is None:
        return f"An attacker's own reader of the {name} is {figures}; whether that is chance was not tested."
    if better:
        return f"A release tells the {name}: an attacker's own reader is {figures}."
    return (
        f"This attacker's reader did not tell the {name} beyond guessing: {figures}. Another may do better."
    )


def linked(*, case: str | None, identical: float | None, auc: float | None, linkable: bool | None) -> str:
    """Whether two releases are known to be of one record.

    Args:
        case: which pairs.
        identical: share of them whose bytes are the same, from 0 to 1.
        auc: of the stronger of two scores.
        linkable: whether a score tells them beyond chance.
    """
    name = case or "pairs of one record"
    if identical == 1:
        return f"Releases of {name} can always be linked: their bytes are the same."
    if auc is None:
        return f"Whether releases of {name} can be linked was not measured in this run."
    if linkable is None:
        return f"Pairs of releases of {name} are told with AUC {decimal(auc)}; whether that is chance was not tested."
    if linkable:
        return f"Releases of {name} can be linked: AUC {decimal(auc)} (0.5 is a coin toss)."
    return (
        f"Releases of {name} were not linked beyond chance: AUC {decimal(auc)}. Another score may do better."
    )


def audited(
    *,
    rejected: bool | None,
    fault: str | None,
    claimed: float | None,
    bound: float | None,
    samples: float | None,
    confidence: float | None,
    deviates: bool = False,
    measure: str = "μ",
) -> str:
    """An audit's outcome. An audit can refute a claim; it cannot confirm one.

    Args:
        rejected: whether the claim was rejected; none where it could not be audited.
        fault: name of the fault that was seeded; none for the mechanism as it is.
        claimed: what is claimed.
        bound: lower bound that the samples certify.
        samples: how many.
        confidence: of the bound, from 0 to 1.
        measure: what `claimed` and `bound` are: μ, or ε where a whole training was audited.
        deviates: whether a check says that the mechanism is not the one described, though its claim may stand.
    """
    shown = f"{count(samples)} samples certify {measure} of at least {decimal(bound, digits=3)}"
    if confidence is not None:
        shown += f" at {percent(100 * confidence, digits=0)} confidence"
    claim = f"the claimed {measure} = {decimal(claimed, digits=3)}"
    if rejected is None:
        return f"Not audited: {count(samples)} samples cannot reach {claim}. Nothing is known either way."
    if rejected and claimed is not None and bound is not None and bound <= claimed:
        # Then a check rejects it, and the bound says nothing of why.
        shown = "the noise of distinct records is not independent"
    if fault is not None:
        if rejected:
            return f"The seeded fault {fault} was caught: the audit rejects {claim}; {shown}."
        if deviates:
            return f"The seeded fault {fault} was caught: the mechanism is not the one described; {shown}."
        return f"The seeded fault {fault} was missed: {shown}, which does not exceed {claim}."
    if rejected:
        return (
            f"Rejected: the mechanism does not keep {claim}: {shown}. Do not rely on the claim until the cause is "
            "found."
        )
    if deviates:
        return (
            f"Deviates: a check says that the mechanism is not the one described. The claim itself was not rejected: "
            f"{shown}, which does not exceed {claim}. That is no proof."
        )
    return (
        f"Not rejected: {shown}, which does not exceed {claim}. That is no proof: the audit can refute a claim and "
        "cannot confirm one."
    )


def chosen_against(
    *,
    limit: str,
    points: int,
    gain: float | None,
    rival_gain: float | None,
    macs: float | None,
) -> str:
    """What the cloud adds within a limit on leakage. Differences in percentage points.

    Args:
        limit: in words, such as "inversion SSIM of at most 0.35".
        points: of the frontier that keep it.
        gain: the most that the cloud adds to the main model alone among them.
        rival_gain: the same point over the best model without a cloud, of the same private MACs.
        macs: private MACs of that point.
    """
    if not points or gain is None:
        return f"No measured point keeps {limit}."
    where = f" (at {millions(macs)} private MACs)" if macs is not None else ""
    text = f"At {limit}, the most that the cloud adds to the main model alone is {signed(gain)} points{where}"
    if rival_gain is None:
        return f"{text}; no model without a cloud was measured there."
    if rival_gain <= 0:
        return (
            f"{text}; a model without any cloud, of the same private MACs, is at least as accurate "
            f"({signed(-rival_gain)} points), and gives nothing away."
        )
    return f"{text}, and {signed(rival_gain)} points over the best model without a cloud, of the same private MACs."


def dominated(*, points: int, beaten: int) -> str | None:
    """How many points a model without a cloud beats in every respect; none where nothing is known of that.

    Args:
        points: of the frontier.
        beaten: of them, where a model without a cloud is no worse in anything and better in something.
    """
    if not points or not beaten:
        return None
    if beaten == points:
        return (
            "No point is worth its cloud: for each there is a model without one that is no worse in anything."
        )
    return f"{count(beaten)} of {count(points)} points are worse than a model without any cloud in every respect."


def timed(*, delta: float | None, whole: float | None, small: float | None, records: float | None) -> str:
    """Latency of Delta beside the whole model and the main-only model on the owner's machine. Milliseconds a call."""
    if delta is None:
        return "Delta itself was not timed in this run."
    text = f"A call of {count(records)} records takes Delta {ms(delta)}"
    if whole is not None:
        text += f", the whole model on the owner's machine {ms(whole)} ({whole / delta:.2f}× of Delta's time)"
    if small is not None:
        text += f", and a main-only model of about the same private MACs {ms(small)}"
    return f"{text}. Read it beside the accuracies: a fast answer may be a worse one."


def grown() -> str:
    """Of a benchmark that varies one setting at a time."""
    return "Times of each method over the values of one setting at a time; medians, with the range of the rounds."


def nothing_proved() -> str:
    """Stands under every measurement of leakage."""
    return "These are the attacks that were tried. That they do no better is evidence, and no proof."
