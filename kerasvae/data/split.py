"""Four person-disjoint roles: a person's scans are all in one of them. No TensorFlow.

*train* fits weights; *validation* decides (early stopping, every choice); *calibration* sets scales and
percentiles; *test* is read once and reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kerasvae.errors import SplitError, nearest

__all__ = ["ROLES", "Split", "split_people"]

ROLES = ("train", "validation", "calibration", "test")


@dataclass(frozen=True)
class Split:
    """The role of each person."""

    roles: Mapping[str, str]

    def __post_init__(self) -> None:
        for person, role in self.roles.items():
            if role not in ROLES:
                close = nearest(role, ROLES)
                raise SplitError(
                    f"The role of {person}",
                    rule=f"be one of {', '.join(ROLES)}",
                    got=repr(role),
                    fix=f"Did you mean {close!r}?" if close else "Correct the table",
                )

    def people(self, *roles: str) -> list[str]:
        """The people of one or more roles, sorted."""
        return sorted(person for person, role in self.roles.items() if role in roles)

    def counts(self) -> dict[str, int]:
        """Number of people in each role."""
        return {role: len(self.people(role)) for role in ROLES}

    @classmethod
    def from_scans(cls, pairs: Iterable[tuple[str, str]]) -> Split:
        """A split from (person, role) of each scan.

        Raises:
            SplitError: If scans of one person have different roles.

        >>> Split.from_scans([("sub-1", "train"), ("sub-2", "test")]).counts()["test"]
        1
        """
        roles: dict[str, str] = {}
        for person, role in pairs:
            if roles.setdefault(person, role) != role:
                raise SplitError(
                    f"All scans of {person}",
                    rule="have one role, or the test would know the people",
                    got=f"{roles[person]!r} and {role!r}",
                    fix="Give every scan of a person the same role",
                )
        return cls(roles)


def split_people(
    keys: Mapping[str, tuple[float, ...]],
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
    fold: int = 0,
    folds: int = 0,
) -> Split:
    """Draw roles at random, balanced over covariates.

    People are put in an order in which neighbours are alike (five bins of each covariate, random within), and each
    in turn gets the role that is furthest behind its share, so that every stratum is divided in the same way.

    Args:
        keys: Person to the values of the covariates to balance (an empty tuple balances nothing).
        fractions: Role to share; shares must sum to 1, and `train` must have one. A role may be empty.
        seed: Seed of the draw.
        fold: Number of the part that is the test, from 0.
        folds: Divide the people into so many parts, of which one is the test and the others share the other roles;
            the same for every `fold`. 0: the test is a share like the others.

    Raises:
        SplitError: If the shares are not valid or leave a role that has a share without people.
    """
    unknown = [role for role in fractions if role not in ROLES]
    shares = {role: float(fractions.get(role, 0.0)) for role in ROLES}
    if unknown or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6 or shares["train"] <= 0:
        raise SplitError(
            "The split",
            rule=f"give shares of {', '.join(ROLES)} that are not negative, sum to 1, and leave people to train on",
            got=dict(fractions),
            fix="Correct [split] of the recipe",
        )
    order = _order(keys, seed)
    if folds:
        parts = _dealt(order, {str(part): 1 / folds for part in range(folds)})
        tested = {person: "test" for person, part in parts.items() if part == str(fold)}
        rest = 1 - shares.pop("test")
        others = [person for person in order if person not in tested]
        roles = tested | _dealt(others, {role: share / rest for role, share in shares.items()})
        shares["test"] = 1 / folds
    else:
        roles = _dealt(order, shares)
    empty = [role for role in ROLES if shares[role] > 0 and role not in roles.values()]
    if empty:
        raise SplitError(
            "The split",
            rule="give every role with a share at least one person",
            got=f"no one for {', '.join(empty)} among {len(keys)} people",
            fix="Add people or change the shares",
        )
    return Split(roles)


def _order(keys: Mapping[str, tuple[float, ...]], seed: int) -> list[str]:
    """People at random, those who are alike side by side."""
    people = sorted(keys)
    order = np.random.default_rng([seed, 0x5B117]).permutation(len(people))
    values = np.array([keys[person] for person in people], dtype=float).reshape(len(people), -1)
    bins = [_bins(column)[order] for column in values.T]
    if bins:
        order = order[np.lexsort(bins[::-1])]
    return [people[index] for index in order]


def _dealt(people: Sequence[str], shares: Mapping[str, float]) -> dict[str, str]:
    """Each person in turn to what is furthest behind its share."""
    counts = dict.fromkeys(shares, 0)
    found = {}
    for done, person in enumerate(people, start=1):
        behind = {name: share * done - counts[name] for name, share in shares.items() if share > 0}
        name = max(behind, key=lambda name: (behind[name], shares[name]))
        counts[name] += 1
        found[person] = name
    return found


def _bins(column: np.ndarray) -> np.ndarray:
    """Quintile of each value; a covariate with five values or fewer keeps them."""
    levels = np.unique(column)
    if len(levels) <= 5:
        return np.searchsorted(levels, column)
    return np.searchsorted(np.quantile(column, [0.2, 0.4, 0.6, 0.8]), column)
