"""What ails a variational autoencoder, in words, from figures of people it was not fitted to. No TensorFlow.

One set of definitions for the training that is watched (`kerasvae.CollapseGuard`) and for the report of a finished run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["ACTIVE", "LEVEL_MARGIN", "NEAR_ZERO", "ONE_NAT", "Diagnosis", "Figures", "at_chance", "diagnose"]

Level = Literal["note", "warning", "problem"]
Name = Literal[
    "mean-brain trap",
    "worse than the mean brain",
    "no better than the mean brain",
    "faint reconstructions",
    "posterior collapse",
    "over-regularised",
    "under-regularised",
    "overfitted",
]

NEAR_ZERO = 0.05
"""An explained variance or a variance ratio below this is as good as the mean brain's, 0: with so little left, no voxel
of a reconstruction differs visibly between people."""
LEVEL_MARGIN = 0.005
"""Explained variances closer than this count as level: people are few, and the third decimal changes with them."""
SIGNIFICANCE = 0.05
"""Identification is at chance where guessing does as well or better with at least this probability."""
ACTIVE = 0.01
"""A dimension whose posterior mean has less variance than this over people, or a KL of fewer nats, is inactive: Burda,
Grosse & Salakhutdinov 2016, arXiv 1509.00519, section 5.2."""
ONE_NAT = 1.0
"""Changes of the ELBO below one nat per subject (a factor e in the evidence) are not spoken of as changes."""
HEAVY, LIGHT = 2.0, 0.5
"""An effective β outside of this weighs the KL at least twice, or at most half, as much as the likelihood at its best
scale would; within, it differs from 1 by what residuals of other people differ by, too."""
FAR_PRIOR = 0.5
"""Nats a dimension between the codes of all people, taken as normal, and the prior. A spread of 1.9 instead of 1, or of
0.35, costs as much; by chance, codes of ten people that follow the prior cost a tenth of it."""
LOST = 0.02
"""Explained variance that overfitting must have cost to be a warning."""
FALLING = 3
"""Epochs after the best one before a fall is spoken of as overfitting."""


@dataclass(frozen=True)
class Figures:
    """What a model does, at one moment, for n people whom its weights were not fitted to.

    What is unknown is NaN, or empty.

    Attributes:
        people: n; several scans of one person count once.
        latent_size: Number of latent dimensions d.
        explained_variance: See `kerasvae.metrics.explained_variance`.
        identification: See `kerasvae.metrics.identification`, in [0, 1].
        variance_ratio: See `kerasvae.metrics.variance_ratio`.
        active_units: See `kerasvae.metrics.active_units`.
        explained_variance_pca: The same of PCA with d components.
        spared: Dimensions that were inactive before training on purpose: a linear start leaves out those that the
            people do not support.
        kl_per_dimension: Nats, (d,).
        aggregate_mean: Mean over people of the codes, (d,), where the prior is N(0, I).
        aggregate_variance: Their variance: of posterior means, plus the mean posterior variance, (d,).
        effective_beta: β · scale^p / mean |x − x̂|^p with p = 2 for a normal likelihood: the weight that the KL would
            have to have, for the same optimum, were the scale at its best value for these people. 1 is the ELBO. A mean
            over N voxels in the place of the sum makes it about N / 2s², s² the mean squared residual.
        effective_beta_pca: The same, were their residual PCA's, as it may become.
        elbo: Calibrated ELBO of these people, nats per subject; what chooses the epoch.
        train_elbo: ELBO of the training people, nats per subject.
        epoch: Number of epochs done.
    """

    people: int
    latent_size: int
    explained_variance: float = math.nan
    identification: float = math.nan
    variance_ratio: float = math.nan
    active_units: float = math.nan
    explained_variance_pca: float = math.nan
    spared: int = 0
    kl_per_dimension: tuple[float, ...] = ()
    aggregate_mean: tuple[float, ...] = ()
    aggregate_variance: tuple[float, ...] = ()
    effective_beta: float = math.nan
    effective_beta_pca: float = math.nan
    elbo: float = math.nan
    train_elbo: float = math.nan
    epoch: int = 0

    @classmethod
    def of_run(cls, metrics: Mapping[str, Any]) -> Figures:
        """From the content of a run's metrics.json."""

        def number(name: str) -> float:
            value = metrics.get(name)
            return math.nan if value is None else float(value)

        n, size = number(f"n_{metrics.get('role', 'test')}"), number("latent_size")
        return cls(
            people=int(n) if math.isfinite(n) else 0,
            latent_size=int(size) if math.isfinite(size) else 0,
            explained_variance=number("explained_variance"),
            identification=number("identification"),
            variance_ratio=number("variance_ratio"),
            active_units=number("active_units"),
            explained_variance_pca=number("explained_variance_pca"),
            kl_per_dimension=tuple(metrics.get("kl_per_dimension") or ()),
            effective_beta=number("effective_beta"),
        )


@dataclass(frozen=True)
class Diagnosis:
    """One thing that is wrong.

    Attributes:
        name: What it is called.
        level: ``note`` (know it), ``warning`` (look into it) or ``problem`` (do not use the model as it is).
        text: What is the case, with its numbers.
        advice: What to do.
    """

    name: Name
    level: Level
    text: str
    advice: str


def diagnose(figures: Figures, history: Sequence[Figures] = ()) -> list[Diagnosis]:
    """What is wrong, the worst first; nothing of a healthy model.

    - **mean-brain trap**: everybody gets the same reconstruction. The variance ratio is below 0.05, identification is
      not above chance (exact binomial test over people, 0.05; left out where people are so few that even perfect
      identification would not pass), and either the explained variance is about 0, from −0.05 to 0.05, or no latent
      dimension is active, so that the model cannot but end there.
      The same with an explained variance below −0.05 and active dimensions is **worse than the mean brain**: training
      has not come so far yet. With varying reconstructions and an explained variance below 0.05 it is **no better than
      the mean brain**; with a variance ratio below 0.05 alone, **faint reconstructions**.
    - **posterior collapse**: of the d dimensions, k are inactive (posterior means vary by less than 0.01 over people).
      A problem where none is active; a warning where more than half of those are gone that a linear start did not leave
      out itself, and PCA with all d explains more; else a note: dimensions that the people do not support are rightly
      left alone by an ELBO.
    - **over-regularised**: an effective β above 2, and PCA explains more.
    - **under-regularised**: an effective β below 0.5, with PCA's residual, too, (or an unknown one), and the codes of
      all people are more than 0.5 nats a dimension from the prior N(0, I), both taken as normal. Small posterior
      deviations alone are no sign: a brain has so many voxels that a healthy code is known to a hundredth.
    - **overfitted**: the calibrated ELBO of held-out people has been below its best by a nat or more for 3 epochs,
      while that of the training people rose by a nat or more. A warning where it has cost 0.02 of the explained
      variance, else a note.

    Args:
        figures: Now.
        history: Earlier epochs under the same conditions, in order; only overfitting needs them.

    >>> healthy = Figures(people=20, latent_size=8, explained_variance=0.4, identification=1.0, variance_ratio=0.5,
    ...                   active_units=8, explained_variance_pca=0.38, effective_beta=1.0)
    >>> diagnose(healthy)
    []
    """
    return [*_mean_brain(figures), *_collapse(figures), *_regularisation(figures), *_overfitting(figures, history)]


def at_chance(identification: float, people: int, chance: float | None = None) -> bool | None:
    """Whether guessing would identify as many with a probability of 0.05 or more; None where it always would.

    People's guesses are taken as independent.

    Args:
        identification: Share identified, in [0, 1].
        people: n.
        chance: By default 1/n.
    """
    from scipy.stats import binom

    rate = 1 / people if chance is None and people else chance or math.nan
    if people < 1 or not math.isfinite(identification) or not 0 < rate <= 1:
        return None
    if binom.sf(people - 1, people, rate) >= SIGNIFICANCE:
        return None
    return bool(binom.sf(round(identification * people) - 1, people, rate) >= SIGNIFICANCE)


def _mean_brain(figures: Figures) -> list[Diagnosis]:
    explained, ratio, peer = figures.explained_variance, figures.variance_ratio, figures.explained_variance_pca
    nothing, still = explained < NEAR_ZERO, ratio < NEAR_ZERO
    if not (nothing or still):
        return []
    told_apart = at_chance(figures.identification, figures.people) is False
    said = f"explained variance {_number(explained)}, variance ratio {_number(ratio)}"
    if math.isfinite(figures.identification):
        said += f", identification {_number(figures.identification, 2)} among {figures.people} people"
    advice = _against_the_mean_brain(figures, peer)
    if still and nothing and not told_apart and (explained >= -NEAR_ZERO or figures.active_units == 0):
        text = f"Mean-brain trap: nearly the same image is reconstructed for everybody ({said})."
        return [Diagnosis("mean-brain trap", "problem", text, advice)]
    if still and explained < -NEAR_ZERO:
        text = f"Nearly one image is reconstructed for everybody, worse than the mean brain ({said})."
        advice = "Training has not reached the mean brain yet: use the linear start (model.start), or train for longer."
        return [Diagnosis("worse than the mean brain", "problem", text, advice)]
    if nothing:
        vary = "hardly vary" if still else "vary"
        text = f"The reconstructions {vary}, and are no better than the mean brain ({said})."
        return [Diagnosis("no better than the mean brain", "problem", text, advice)]
    text = f"The reconstructions vary far less than people do ({said})."
    return [
        Diagnosis(
            "faint reconstructions", "warning", text, "Use the optimal scale and beta = 1; more latents may help."
        )
    ]


def _against_the_mean_brain(figures: Figures, peer: float) -> str:
    if peer < NEAR_ZERO:
        return (
            "PCA does no better, so look at the images first: are they aligned, is the mask right, are there people "
            "enough to learn from?"
        )
    blame = "PCA does better, so the images are not to blame. " if peer - figures.explained_variance > 0 else ""
    return f"{blame}Use the linear start (model.start), the optimal scale (model.scale) and beta = 1."


def _collapse(figures: Figures) -> list[Diagnosis]:
    size, active = figures.latent_size, figures.active_units
    if figures.people < 2 or size < 1 or not math.isfinite(active) or active >= size:
        return []
    gone, spared = int(size - active), min(figures.spared, int(size - active))
    if active == 0:
        text = f"Posterior collapse: all {size} dimensions are inactive; the encoder says the same of everybody."
        advice = "Use the linear start and the optimal scale with beta = 1, or a warm-up of beta."
        return [Diagnosis("posterior collapse", "problem", text, advice)]
    said = f"{gone} of {size} dimensions are inactive"
    if spared:
        said += f", {spared} of which the start left out" if spared < gone else ", which the start left out"
    behind = not figures.explained_variance >= figures.explained_variance_pca - LEVEL_MARGIN  # unknown counts as behind
    if gone - spared > (size - spared) / 2 and behind:
        advice = "Use the linear start or a warm-up of beta; if PCA needs no more dimensions either, lower latent_size."
        return [Diagnosis("posterior collapse", "warning", f"Posterior collapse in part: {said}.", advice)]
    advice = "Harmless where the explained variance stands beside PCA's; a lower latent_size would do as well."
    text = f"{said[0].upper()}{said[1:]}; they carry nothing about people."
    return [Diagnosis("posterior collapse", "note", text, advice)]


def _regularisation(figures: Figures) -> list[Diagnosis]:
    beta = figures.effective_beta
    behind = figures.explained_variance < figures.explained_variance_pca - LEVEL_MARGIN
    if beta > HEAVY and behind:
        text = (
            f"Over-regularised: the effective beta is {beta:.3g}, the KL is paid for as many times, and PCA explains "
            f"more ({_number(figures.explained_variance_pca)} against {_number(figures.explained_variance)})."
        )
        advice = "Use the optimal scale with beta = 1: sums over voxels, not means, or a smaller beta or scale."
        return [Diagnosis("over-regularised", "warning", text, advice)]
    if not figures.aggregate_variance or beta >= LIGHT or figures.effective_beta_pca >= LIGHT:
        return []
    mean, variance = np.array(figures.aggregate_mean), np.array(figures.aggregate_variance)
    far = float(np.mean(0.5 * (variance + mean**2 - 1 - np.log(np.maximum(variance, 1e-12)))))
    if not far > FAR_PRIOR:
        return []
    weight = f"the effective beta is {beta:.3g}, and " if math.isfinite(beta) else ""
    text = (
        f"Under-regularised: {weight}the codes of all people are {far:.2g} nats a dimension from the prior "
        f"(their standard deviation is {math.sqrt(float(np.median(variance))):.2g}, the prior's 1)."
    )
    advice = (
        "Raise beta to 1 with the optimal scale; until then neither samples from the prior nor the KL mean a thing."
    )
    return [Diagnosis("under-regularised", "warning", text, advice)]


def _overfitting(figures: Figures, history: Sequence[Figures]) -> list[Diagnosis]:
    known = [row for row in history if math.isfinite(row.elbo)]
    if not known or not math.isfinite(figures.elbo):
        return []
    best = max(known, key=lambda row: row.elbo)
    since = [row for row in known if row.epoch > best.epoch and row.epoch < figures.epoch] + [figures]
    fallen = best.elbo - figures.elbo
    if len(since) < FALLING or not all(best.elbo - row.elbo >= ONE_NAT for row in since[-FALLING:]):
        return []
    before = best.train_elbo if math.isfinite(best.train_elbo) else since[0].train_elbo
    if not figures.train_elbo - before >= ONE_NAT:
        return []
    lost = best.explained_variance - figures.explained_variance
    text = (
        f"Overfitted: since epoch {best.epoch} the ELBO of held-out people fell by {fallen:.1f} nats per subject, "
        f"while that of the training people rose by {figures.train_elbo - before:.1f} (explained variance "
        f"{_number(best.explained_variance)} then, {_number(figures.explained_variance)} now)."
    )
    advice = "Keep the weights of the best epoch; lower the learning rate, raise dropout, or train on more people."
    return [Diagnosis("overfitted", "warning" if lost >= LOST else "note", text, advice)]


def _number(value: float, digits: int = 3) -> str:
    text = f"{value:.{digits}f}"
    return (text.replace("-", "−") if float(text) else text.lstrip("-")) if math.isfinite(value) else "–"
