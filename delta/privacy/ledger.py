"""The ledger: what each subject has spent, debited before anything is sent.

A debit is keyed by a subject and an opaque release id. The caller makes that id as an HMAC, under a key of
its own, over what makes a release a distinct one (record, content digest and release_hash; for a memoised
label, the record alone), so that a ledger that leaks names no record.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, Protocol

from delta.errors import BudgetExceededError, PrivacyParameterError
from delta.privacy.accountant import root, squared_mu
from delta.privacy.events import GaussianRelease, NonPrivateRelease, RandomizedResponseLabel

__all__ = ["UNLIMITED", "Budget", "Debit", "InMemoryLedger", "Ledger", "Spent", "checked_budget"]

UNLIMITED: Literal["unlimited"] = "unlimited"
Budget = float | Literal["unlimited"]
"""A subject's budget: the largest μ that its releases may compose to, or `unlimited`."""

_SLACK = Fraction(1, 10**12)
_RELEASE_ID = re.compile(r"[0-9a-f]{32,128}")


@dataclass(frozen=True)
class Debit:
    """One release of one subject's record.

    Attributes:
        subject: the person whom the record is about, as the owner names them; an empty one stands for all
            whose subject is unknown, and is charged as if they were one person.
        release_id: the release's HMAC in hex, 32 to 128 lower-case digits.
        event: what was released.
    """

    subject: str
    release_id: str
    event: GaussianRelease | NonPrivateRelease | RandomizedResponseLabel

    def __post_init__(self) -> None:
        if not _RELEASE_ID.fullmatch(self.release_id):
            raise PrivacyParameterError(
                "a release id must be an HMAC of 32 to 128 lower-case hex digits: a ledger holds nothing "
                "that could name a record"
            )


@dataclass(frozen=True)
class Spent:
    """What a subject has spent.

    Attributes:
        mu: √Σμ² over its releases, without labels; infinite once one went out without noise.
        label_epsilon: Σε over its labels sent through randomised response.
        joint_mu: √Σμ² over releases and labels.
        releases: number of distinct releases.
        labels: number of distinct labels.
    """

    mu: float = 0.0
    label_epsilon: float = 0.0
    joint_mu: float = 0.0
    releases: int = 0
    labels: int = 0


class Ledger(Protocol):
    """What every ledger does.

    Contract: a debit that is already entered costs nothing; a batch is entered whole or not at all; once
    `debit` returns, its entries survive whatever the ledger promises to survive; threads may share it.
    """

    @property
    def budget(self) -> Budget:
        """The budget of each subject."""
        ...

    def debit(self, debits: Sequence[Debit]) -> int:
        """Enter releases that are about to be sent.

        Returns:
            How many were new.

        Raises:
            BudgetExceededError: a subject's joint μ would pass the budget; nothing was entered.
            PrivacyParameterError: a release id is entered already with another event; nothing was entered.
        """
        ...

    def spent(self, subject: str) -> Spent:
        """What a subject has spent; zeros for an unknown one."""
        ...

    def entries(self) -> tuple[Debit, ...]:
        """All entries in the order of their first debit; they can be replayed into another ledger."""
        ...


@dataclass
class _Account:
    """Running sums of one subject; `None` stands for a cost without bound."""

    release: Fraction | None = Fraction(0)
    label: Fraction = Fraction(0)
    label_epsilon: Fraction = Fraction(0)
    releases: int = 0
    labels: int = 0

    def add(self, debit: Debit) -> None:
        cost = squared_mu(debit.event)
        if isinstance(debit.event, RandomizedResponseLabel):
            self.label += cost or 0
            self.label_epsilon += Fraction(debit.event.epsilon)
            self.labels += 1
        else:
            self.release = None if self.release is None or cost is None else self.release + cost
            self.releases += 1

    @property
    def joint(self) -> Fraction | None:
        return None if self.release is None else self.release + self.label


@dataclass
class _Plan:
    """What a batch would change: the new entries, and the accounts that they touch."""

    entries: dict[tuple[str, str], Debit] = field(default_factory=dict)
    accounts: dict[str, _Account] = field(default_factory=dict)


class InMemoryLedger:
    """A ledger that lives as long as its process.

    Args:
        budget: the largest joint μ of any one subject, or `unlimited`; `noise: none` needs `unlimited`.
        entries: of an earlier ledger, replayed first; what is already spent is never refused.
        keep: called with the new entries of each later batch before they count; where it raises, nothing is
            entered.

    Raises:
        PrivacyParameterError: the budget is not a number above 0, or the entries contradict each other.
    """

    def __init__(
        self,
        *,
        budget: Budget,
        entries: Iterable[Debit] = (),
        keep: Callable[[Sequence[Debit]], None] | None = None,
    ) -> None:
        self._budget = checked_budget(budget)
        # The slack covers the rounding of a budget that was itself computed, such as μ√2.
        self._limit = None if self._budget == UNLIMITED else Fraction(self._budget) ** 2 * (1 + _SLACK)
        self._entries: dict[tuple[str, str], Debit] = {}
        self._accounts: dict[str, _Account] = {}
        self._lock = threading.Lock()
        self._keep = keep
        self._enter(self._plan(entries))

    @property
    def budget(self) -> Budget:
        """The budget of each subject."""
        return self._budget

    def debit(self, debits: Sequence[Debit]) -> int:
        """Enter releases that are about to be sent; see `Ledger.debit`."""
        with self._lock:
            plan = self._plan(debits)
            for subject, account in plan.accounts.items():
                self._refuse_overdraft(subject, account)
            return self._keep_and_enter(plan)

    def replay(self, entries: Iterable[Debit]) -> int:
        """Enter what has been sent already: whole or not at all, and never refused for the budget.

        Returns:
            How many were new.

        Raises:
            PrivacyParameterError: the entries contradict each other or what is entered.
        """
        with self._lock:
            return self._keep_and_enter(self._plan(entries))

    def spent(self, subject: str) -> Spent:
        """What a subject has spent; zeros for an unknown one."""
        with self._lock:
            account = self._accounts.get(subject, _Account())
            return Spent(
                mu=root(account.release),
                label_epsilon=float(account.label_epsilon),
                joint_mu=root(account.joint),
                releases=account.releases,
                labels=account.labels,
            )

    def entries(self) -> tuple[Debit, ...]:
        """All entries in the order of their first debit."""
        with self._lock:
            return tuple(self._entries.values())

    def _plan(self, debits: Iterable[Debit]) -> _Plan:
        plan = _Plan()
        for debit in debits:
            key = (debit.subject, debit.release_id)
            known = self._entries.get(key) or plan.entries.get(key)
            if known is None:
                plan.entries[key] = debit
                if debit.subject not in plan.accounts:
                    now = self._accounts.get(debit.subject, _Account())
                    plan.accounts[debit.subject] = _Account(**vars(now))
                plan.accounts[debit.subject].add(debit)
            elif known.event != debit.event:
                raise PrivacyParameterError(
                    f"release id {debit.release_id[:12]}… is entered as {known.event}, now as {debit.event}: "
                    "release ids must cover the release_hash"
                )
        return plan

    def _refuse_overdraft(self, subject: str, account: _Account) -> None:
        if self._limit is None or (account.joint is not None and account.joint <= self._limit):
            return
        before = self._accounts.get(subject, _Account())
        if account.joint is None:
            raise BudgetExceededError(
                f"a release without noise spends without bound, and the budget is μ = {self._budget:.4g} "
                "a subject; add noise, or set the budget to 'unlimited'"
            )
        raise BudgetExceededError(
            f"a subject has spent μ = {root(before.joint):.4g} of {self._budget:.4g} and these would "
            f"make it {root(account.joint):.4g}; send fewer records of it, add noise, or raise the budget"
        )

    def _keep_and_enter(self, plan: _Plan) -> int:
        if plan.entries and self._keep is not None:
            self._keep(tuple(plan.entries.values()))
        self._enter(plan)
        return len(plan.entries)

    def _enter(self, plan: _Plan) -> None:
        self._entries.update(plan.entries)
        self._accounts.update(plan.accounts)


def checked_budget(budget: Budget) -> Budget:
    """The budget itself.

    Raises:
        PrivacyParameterError: it is neither `unlimited` nor a finite μ above 0.
    """
    if budget == UNLIMITED:
        return UNLIMITED
    if isinstance(budget, (bool, str)) or not 0.0 < budget < math.inf:
        raise PrivacyParameterError(
            f"a subject's budget must be a finite μ above 0, or 'unlimited', got {budget!r}"
        )
    return float(budget)
