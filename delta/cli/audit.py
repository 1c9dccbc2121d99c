"""`delta audit`: try to falsify the privacy claim of a release, from image to packet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delta.cli.bench_latency import epsilon_of
from delta.cli.output import check_writable, progress, say, table, warn, write_json
from delta.errors import AuditError, ConfigError

if TYPE_CHECKING:
    from delta.attacks.audit.audit import AuditResult, Mechanism

__all__ = ["audit"]

_SAMPLES, _BUNDLE_SAMPLES = 100_000, 10_000
_MECHANISMS = ("delta", "paper-code", "paper-code-gaussian")


def audit(
    bundle: Annotated[
        Path | None, typer.Option(help="Audit this bundle's release; default: a network made for audits.")
    ] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="That is claimed; default: 1. A bundle claims its own.")
    ] = None,
    delta: Annotated[float, typer.Option(help="At which ε displays μ.")] = 1e-5,
    samples: Annotated[
        int | None,
        typer.Option(
            min=100, help=f"Records of each image; default: {_SAMPLES:,}, of a bundle {_BUNDLE_SAMPLES:,}."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of everything that is said.")] = 0.95,
    fault: Annotated[
        str | None,
        typer.Option(
            help="Seed no-clip, doubled-norm, fresh-retry, scaled-sigma, fixed-seed or batch-scale; "
            "catching it is then success."
        ),
    ] = None,
    mechanism: Annotated[
        str, typer.Option(help="delta, or paper-code: the published code's, from its description.")
    ] = "delta",
    trained: Annotated[
        bool, typer.Option(help="Audit one training of a cloud model instead, on the embedded digits.")
    ] = False,
    canaries: Annotated[int, typer.Option(min=10, help="Of --trained.")] = 200,
    epochs: Annotated[int, typer.Option(min=1, help="Of --trained.")] = 30,
    device: Annotated[str, typer.Option(help="Of --trained: cpu, cuda or cuda:N.")] = "cpu",
    allow: Annotated[
        list[str] | None, typer.Option(help="pkg.mod:callable that the bundle may build here; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, order and search.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Try to falsify a privacy claim. Exit code 9 where it is rejected, or where a seeded fault is missed."""
    check_writable(json)
    _check_choices(bundle=bundle, epsilon=epsilon, mechanism=mechanism, fault=fault, trained=trained)
    if trained:
        claim = epsilon_of(epsilon or "1")
        _trained(
            claim, delta, confidence, canaries=canaries, epochs=epochs, device=device, seed=seed, json=json
        )
        return
    from delta.attacks.audit.audit import audit_bundle
    from delta.attacks.audit.faults import fault_of
    from delta.attacks.audit.network import audited_bundle
    from delta.bundle.store import load_bundle

    seeded = None if fault is None else fault_of(fault)
    claim = epsilon_of(epsilon or "1")
    if bundle is not None:
        whole = load_bundle(bundle)
    elif claim is None:
        raise ConfigError("without noise there is no claim to audit; give --epsilon a number")
    else:
        whole = audited_bundle(epsilon=claim, delta=delta)
    other = _other(mechanism, claim, delta, seed=seed)
    count = samples or (_SAMPLES if bundle is None else _BUNDLE_SAMPLES)
    with progress() as told:
        found = audit_bundle(
            whole,
            samples=count,
            confidence=confidence,
            delta=delta,
            fault=seeded,
            other=other,
            searched=bundle is not None,
            seed=seed,
            allow=tuple(allow or ()),
            progress=told,
        )
    write_json(json, {**found.to_json(), "environment": _environment("cpu")})
    if str(json) != "-":
        _show(found)
    _judge(found)


def _check_choices(
    *, bundle: Path | None, epsilon: str | None, mechanism: str, fault: str | None, trained: bool
) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: naming them.
    """
    if mechanism not in _MECHANISMS:
        raise ConfigError(f"--mechanism {mechanism!r} is unknown; give {', '.join(_MECHANISMS)}")
    if bundle is not None and epsilon is not None:
        raise ConfigError("--epsilon is for the network made for audits; a bundle claims its own ε")
    if mechanism != "delta" and (bundle is not None or fault is not None):
        raise ConfigError(f"--mechanism {mechanism} stands alone; leave out --bundle and --fault")
    if trained and (bundle is not None or fault is not None or mechanism != "delta"):
        raise ConfigError("--trained trains a model of its own; leave out --bundle, --fault and --mechanism")


def _other(mechanism: str, epsilon: float | None, delta: float, *, seed: int) -> Mechanism | None:
    from delta.attacks.audit.authors import paper_code

    if mechanism == "delta" or epsilon is None:
        return None
    return paper_code(
        epsilon=epsilon,
        delta=delta,
        noise="gaussian" if mechanism.endswith("gaussian") else "laplace",
        seed=seed,
    )


def _trained(
    epsilon: float | None,
    delta: float,
    confidence: float,
    *,
    canaries: int,
    epochs: int,
    device: str,
    seed: int,
    json: Path | None,
) -> None:
    from delta.attacks.audit.trained import audit_trained
    from delta.data.embedded import load_embedded

    data = load_embedded(seed=seed).train.limited(max(200, 3 * canaries), seed=seed)
    with progress() as told:
        found = audit_trained(
            data,
            epsilon=epsilon,
            delta=delta,
            canaries=canaries,
            epochs=epochs,
            confidence=confidence,
            seed=seed,
            device=device,
            progress=told,
        )
    write_json(json, {**found.to_json(), "environment": _environment(device)})
    if str(json) != "-":
        say(f"{found.bound.canaries} canaries in {found.records} records, {found.epochs} epochs")
        say(found.verdict)
    if found.rejected:
        raise AuditError(f"the audit rejects the claim: {found.verdict}")


def _show(found: AuditResult) -> None:
    bound = found.bound
    rows = [
        ["claimed", f"μ = {found.mu:.4g} (ε = {found.epsilon:.4g} at δ = {found.delta:g})"],
        ["certified by the test", f"μ ≥ {bound.mu:.4g} at confidence {found.confidence:g}"],
        ["samples", f"{found.samples:,} of each image, half of them to choose the threshold"],
        ["false positives", f"{bound.false_positives:,} of {bound.negatives:,}"],
        ["misses", f"{bound.misses:,} of {bound.positives:,}"],
        ["pair", f"{found.pair.kind}, {100 * found.pair.reached:.1f} % of 2C apart"],
        *([name, ("" if check.passed else "FAILED: ") + check.what] for name, check in found.checks.items()),
        ["seed, seconds", f"{found.seed}, {found.seconds:.0f}"],
    ]
    fault = f", with the fault {found.fault}" if found.fault else ""
    table(f"Audit of {found.mechanism}{fault}", ["figure", "found"], rows)
    say(found.verdict)
    if found.pair.reached < 0.95:
        warn(f"the search reached {100 * found.pair.reached:.0f} % of 2C: this audit has less power for it")


def _judge(found: AuditResult) -> None:
    """The exit code: without a fault the claim must stand, with one it must fall.

    Raises:
        AuditError: it is the other way round.
    """
    if found.fault is not None:
        if not found.rejected:
            raise AuditError(
                f"the seeded fault {found.fault!r} was missed at n = {found.samples:,}; raise --samples"
            )
        return
    if found.rejected or found.deviates:
        raise AuditError(f"the audit fails: {found.verdict}")


def _environment(device: str) -> dict[str, Any]:
    from delta.cli.bench_processes import environment

    return environment(device)
