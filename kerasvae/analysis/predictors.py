"""What people's codes predict over all folds, and how well the same would do on targets that mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.folds import Fold, Sample
from kerasvae.analysis.permutation import SAME, orders, orthonormal
from kerasvae.errors import ArgumentError
from kerasvae.metrics.logistic import logistic_of
from kerasvae.metrics.predicted import category_figures, number_figures
from kerasvae.metrics.prediction import ridge_of

__all__ = ["ADDED", "BOTH", "COVARIATES", "Chance", "Predictors", "Told"]

Numbers = NDArray[np.float64]
INNER = 5
"""Parts of those learned from, by which the penalty is chosen."""
COVARIATES = "covariates"
BOTH = "covariates_latents"
ADDED = "latents beyond covariates"
CHUNK = 200
"""Permuted targets at once."""


class Told(NamedTuple):
    """Predictions of the tested people by one predictor.

    Attributes:
        predicted: Of each seed, (seeds, m), numbers; of a category probabilities, (seeds, m, levels).
        expected: Mean of those learned from, (seeds, m); of a category not used.
    """

    predicted: Numbers
    expected: Numbers

    def figures(self, observed: Numbers, weights: Numbers | None = None) -> dict[str, Numbers]:
        """Means over seeds of `number_figures` or `category_figures`, each (b,)."""
        if self.predicted.ndim == 3:
            of_each = [category_figures(observed.astype(np.int64), p, weights) for p in self.predicted]
        else:
            of_each = [number_figures(observed, *each, weights) for each in zip(*self, strict=True)]
        return {name: np.mean([each[name] for each in of_each], axis=0) for name in of_each[0]}


class Chance(NamedTuple):
    """A permutation test.

    Attributes:
        statistic: Name of what is compared.
        value: Of the people as they are.
        mean: Over permutations.
        p: (1 + permutations that reach the value) / (1 + permutations).
        permutations: Their number.
    """

    statistic: str
    value: float
    mean: float
    p: float
    permutations: int


class Predictors:
    """A sample's predictors, each learned in each fold from the people that its run does not test.

    Numbers are predicted by `kerasvae.metrics.prediction.ridge_of`, covariates without a penalty; categories by
    `kerasvae.metrics.logistic.logistic_of`.

    Args:
        folds: The runs.
        sample: The people.
        seed: Of the parts by which penalties are chosen, and of permutations.

    Raises:
        ArgumentError: If a run leaves too few people to learn from.
    """

    def __init__(self, folds: Sequence[Fold], sample: Sample, seed: int = 0) -> None:
        self.sample, self.seed = sample, seed
        self.seeds = 1 + max(fold.seed for fold in folds)
        place = np.full(len(sample.people), -1)
        place[sample.tested] = np.arange(len(sample.tested))
        self.parts = []
        for fold, roles in zip(folds, sample.roles, strict=True):
            learn, left = np.flatnonzero(roles != "test"), np.flatnonzero(roles == "test")
            codes = {name: sample.averaged(values) for name, values in fold.codes.items()}
            self.parts.append((fold.seed, codes, learn, left, place[left]))
        for fold, (_, _, learn, _, _) in zip(folds, self.parts, strict=True):
            if not self._learnable(sample.target[learn]):
                raise self._too_few(sample.target[learn], fold.name)

    def names(self) -> list[str]:
        """What is learned from: the codes' names, and where there are covariates these alone and with latents."""
        return [*self.parts[0][1], *((COVARIATES, BOTH) if self.sample.covariates.shape[1] else ())]

    def told(self, name: str) -> Told:
        """What one predictor says of everyone who is tested."""
        z, known = self._inputs(name)
        if self.sample.levels:
            return Told(self._levels(self.sample.target, z, known), np.empty(0))
        predicted, plain, expected = (each[..., 0] for each in self._numbers(self.sample.target[:, None], z, known))
        return Told(plain if name == COVARIATES else predicted, expected)

    def chance(
        self, name: str, permutations: int, progress: Callable[[int], None] = lambda done: None
    ) -> Chance | None:
        """Whether codes predict better than they would by chance; everything is learned anew, penalties chosen anew.

        ``latents``, or ``pca``: the target is permuted between people. Null: the target has nothing to do with the
        codes of the people, nor with who is tested. The statistic is r; of a category with two levels the area under
        the curve, with more minus the log loss.

        ``latents beyond covariates``: whether latents add to covariates. Of a number the residuals of least squares on
        the covariates, over all people, are permuted and added to what covariates explain (Freedman & Lane 1983, see
        `kerasvae.analysis.permutation`). Null: the target is a line in the covariates and an error that is
        exchangeable between people and has nothing to do with the codes. The statistic is the R² gained over the
        covariates alone. A category has no such residuals: those of the latents on the covariates are permuted, the
        same people in each run, while target and covariates stay together (as Potter 2005, A permutation test for
        inference in logistic regression with small- and moderate-sized data sets, Stat. Med. 24:693, does with the
        variable that is asked about). Null: given the covariates, the category says nothing about the latents, whose
        deviations from lines in the covariates are exchangeable. The statistic is the log loss saved, nats.

        Orders are drawn among those that leave each fold enough people of each level.

        Args:
            name: As said.
            permutations: Their number.
            progress: Told how many are done.

        Returns:
            None where nothing was permuted.
        """
        if not permutations:
            return None
        compare: Callable[[NDArray[np.intp]], Numbers]
        if name == ADDED and self.sample.levels:
            statistic, compare = "log loss saved", self._permuted_latents
        elif name == ADDED:
            statistic, compare = "R² gained", self._permuted_residuals
        else:
            statistic, compare = self._statistic, lambda order: self._permuted_target(name, order)
        value = float(compare(np.arange(len(self.sample.people))[None])[0])
        found: list[float] = []
        for order in self._orders(permutations, 1 if self.sample.levels else CHUNK):
            found += compare(order).tolist()
            progress(len(found))
        reached = sum(each >= value - SAME * abs(value) for each in found)
        return Chance(statistic, value, float(np.mean(found)), (1 + reached) / (1 + permutations), permutations)

    @property
    def _statistic(self) -> str:
        levels = len(self.sample.levels)
        return {0: "r", 2: "auc"}.get(levels, "minus log loss")

    def _permuted_target(self, name: str, order: NDArray[np.intp]) -> Numbers:
        """The statistic of each order of the target, (t,)."""
        y, (z, known) = self.sample.target[order].T, self._inputs(name)
        if self.sample.levels:
            return np.array([self._worth(each, self._levels(each, z, known), self._statistic) for each in y.T])
        predicted, _, expected = self._numbers(y, z, known)
        tested = y[self.sample.tested]
        return np.array(
            [Told(predicted[..., t], expected[..., t]).figures(tested[:, t])["r"][0] for t in range(y.shape[1])]
        )

    def _permuted_residuals(self, order: NDArray[np.intp]) -> Numbers:
        """R² that latents add to covariates, for each order of the residuals given these, (t,)."""
        z, known = self._inputs(BOTH)
        basis = orthonormal(known[0])
        fitted = basis @ (basis.T @ self.sample.target)
        y = fitted[:, None] + (self.sample.target - fitted)[order].T
        predicted, plain, expected = self._numbers(y, z, known)
        tested = y[self.sample.tested]
        lost, left, whole = (np.square(tested - each).sum(axis=1) for each in (predicted, plain, expected))
        return np.asarray(((left - lost) / whole).mean(axis=0))

    def _permuted_latents(self, order: NDArray[np.intp]) -> Numbers:
        """Log loss that latents save beside covariates, for each order of their residuals given these, (t,)."""
        z, known = self._inputs(BOTH)
        basis = orthonormal(np.c_[np.ones(len(known[0])), known[0]])
        alone = self._worth(self.sample.target, self.told(COVARIATES).predicted, "minus log loss")
        found = []
        for each in order:
            fitted = [basis @ (basis.T @ codes) for codes in z]
            moved = [line + (codes - line)[each] for codes, line in zip(z, fitted, strict=True)]
            both = self._levels(self.sample.target, moved, known)
            found.append(self._worth(self.sample.target, both, "minus log loss") - alone)
        return np.array(found)

    def _worth(self, target: Numbers, probabilities: Numbers, statistic: str) -> float:
        figures = Told(probabilities, np.empty(0)).figures(target[self.sample.tested])
        return float(figures["auc"][0] if statistic == "auc" else -figures["log_loss"][0])

    def _inputs(self, name: str) -> tuple[list[Numbers], list[Numbers]]:
        """Codes and what is known beside, of each part, (n, d) and (n, c)."""
        rows = len(self.sample.people)
        held = name in (COVARIATES, BOTH)
        known = self.sample.covariates if held else np.empty((rows, 0))
        if not self.sample.levels:
            known = np.c_[np.ones(rows), known]  # the intercept, which logistic regression has of itself
        source = "latents" if held else name
        alone = name == COVARIATES and self.sample.levels  # `ridge_of` says what covariates say alone
        z = [codes[source][:, :0] if alone else codes[source] for _, codes, *_ in self.parts]
        return z, [known] * len(z)

    def _numbers(self, y: Numbers, z: list[Numbers], known: list[Numbers]) -> tuple[Numbers, Numbers, Numbers]:
        """Predicted, predicted by what is known alone, and mean of those learned from, (seeds, m, t), of y (n, t)."""
        predicted, plain, expected = np.full((3, self.seeds, len(self.sample.tested), y.shape[1]), np.nan)
        who = np.arange(len(y))
        for (seed, _, learn, left, place), codes, beside in zip(self.parts, z, known, strict=True):
            found = ridge_of(codes, y, beside, learn, left, who=who, folds=INNER, seed=self.seed)
            predicted[seed, place], plain[seed, place] = found.predicted, found.plain
            expected[seed, place] = y[learn].mean(axis=0)
        return predicted, plain, expected

    def _levels(self, y: Numbers, z: list[Numbers], known: list[Numbers]) -> Numbers:
        """Probabilities, (seeds, m, levels)."""
        found = np.full((self.seeds, len(self.sample.tested), len(self.sample.levels)), np.nan)
        for (seed, _, learn, left, place), codes, beside in zip(self.parts, z, known, strict=True):
            found[seed, place] = logistic_of(
                codes, y.astype(np.int64), beside, learn, left, folds=INNER, seed=self.seed
            )[0]
        return found

    def _orders(self, permutations: int, few: int) -> Iterator[NDArray[np.intp]]:
        """Random orders of the people, `few` at a time, until there are enough that can be learned from."""
        rng, done = np.random.default_rng(self.seed), 0
        while done < permutations:
            for order in orders(len(self.sample.people), permutations - done, rng, few=few):
                kept = order[[self._enough(self.sample.target[each]) for each in order]]
                if len(kept):
                    done += len(kept)
                    yield kept

    def _enough(self, target: Numbers) -> bool:
        """Whether each run can learn from whom it does not test."""
        return all(self._learnable(target[learn]) for _, _, learn, _, _ in self.parts)

    def _learnable(self, target: Numbers) -> bool:
        if self.sample.levels:
            return min(self._counts(target)) >= INNER
        return len(target) >= 2 * INNER and bool(np.ptp(target) > 0)

    def _counts(self, target: Numbers) -> list[int]:
        """People of each level."""
        return np.bincount(target.astype(np.int64), minlength=len(self.sample.levels)).tolist()

    def _too_few(self, target: Numbers, run: str) -> ArgumentError:
        name, levels = self.sample.variable, self.sample.levels
        rule = f"vary between {2 * INNER} people or more whom a run does not test"
        got = f"{len(target)} in {run}" if len(target) < 2 * INNER else f"one value of {len(target)} people in {run}"
        fix = "Leave it out, or train with more people"
        if levels:
            few = [f"{n} with {level}" for level, n in zip(levels, self._counts(target), strict=True) if n < INNER]
            rule = f"be known of {INNER} people or more with each level whom a run does not test"
            got = f"{', '.join(few)} in {run}"
            fix = f"Leave it out, join levels in another column, or leave scans out with cohort.exclude = {{ {name} = "
            fix += f'["{levels[int(np.argmin(self._counts(target)))]}"] }} and train again'
        return ArgumentError(name, rule=rule, got=got, fix=fix)
