"""Who the simulated people are: age, sex, disease and the factors that shape their brains. No TensorFlow.

Everything about a healthy brain is fitted to the 139 people of IXI (Hammersmith) whose regional volumes are known:
ordinary least squares of a volume's logarithm, measured in MNI space, on age, sex and head size. Everything about the
disease is a published rate. `docs/simulator.md` has the formulas and the references in full.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kerasvae.data.anatomy import REGIONS

__all__ = [
    "AGE_LOSS_PER_DECADE",
    "DISEASE_HIPPOCAMPUS_PER_YEAR",
    "DISEASE_LOSS_PER_YEAR",
    "DISEASE_VENTRICLE_PER_YEAR",
    "VISIT_INTERVAL_YEARS",
    "Person",
    "State",
    "draw_person",
    "state_at",
    "visit_years",
]

AGE_RANGE = (20.0, 80.0)
"""Years; controls are drawn evenly between, as IXI's are."""
PATIENT_AGE_RANGE = (60.0, 85.0)
"""Years; patients are drawn evenly between: late-onset Alzheimer's disease."""
MALE_SHARE = 0.47
"""Share of men in IXI."""
LOG_HEAD = {"F": (0.308, 0.092), "M": (0.187, 0.074)}
"""Mean and standard deviation of log(MNI volume / native volume) in IXI; the ratio of men's larger heads is smaller."""
LOG_HEAD_MEAN = 0.25

# Fitted to IXI: log volume in MNI space at 50 years, per decade, per decade squared, men less women, per unit of log
# head size; and the standard deviation of what remains.
VENTRICLE_AGE = (0.206, 0.0245)
VENTRICLE_SEX = -0.162
VENTRICLE_HEAD = -1.245
VENTRICLE_AT_50 = 0.085
"""Relative to the template; set so that volumes in the images have IXI's mean."""
VENTRICLE_SD = 0.34
"""IXI: 0.36; the random shape adds the rest."""
VENTRICLE_RANGE = (-1.6, 1.75)
"""Held within, which concerns one patient in twelve: beyond, the flow would fold."""
HIPPOCAMPUS_AGE = (-0.0133, -0.0069)
HIPPOCAMPUS_SEX = 0.018
HIPPOCAMPUS_HEAD = 0.338
HIPPOCAMPUS_SD = 0.05
"""IXI: 0.068; the random shape adds the rest."""
AGE_LOSS_PER_DECADE = {
    "frontal": 0.0505, "parietal": 0.0445, "temporal": 0.0347, "occipital": 0.0213, "limbic": 0.0293, "deep": 0.0296,
    "cerebellum": 0.0213,
}  # fmt: skip
"""Share of a region's grey matter that is lost in ten years, fitted to IXI."""
LOSS_HEAD = -0.168
"""Share lost per unit of log head size: small heads, once scaled, have more grey matter (IXI, whole grey matter)."""
LOSS_COMMON_SD, LOSS_REGION_SD = 0.035, 0.035
"""Between people, over all regions and in one region; IXI: 0.038 for the whole, 0.054 to 0.069 for a region."""
TEMPLATE_AGE = 25.0
"""The age at which nothing is lost; the template is of young adults."""

# Published. The stage counts years of disease, times the person's pace.
STAGE_RANGE = (2.0, 14.0)
"""Years of disease at the first visit, drawn evenly. Eight on average, which makes the mean loss of the hippocampus
23 %: Shi, Liu, Zhou, Yu and Jiang 2009, Hippocampus 19:1055, found 24.2 % (left) and 23.1 % (right)."""
PACE_SD = 0.2
"""Of the logarithm of a patient's pace. A choice."""
DISEASE_HIPPOCAMPUS_PER_YEAR = -0.0333
"""Beyond ageing. Barnes et al. 2009, Neurobiol. Aging 30:1711, a meta-analysis: 4.66 % a year in patients, 1.41 % in
controls, 3.33 % (95 % interval 1.73 to 4.94) between them."""
DISEASE_VENTRICLE_PER_YEAR = 0.05
"""Beyond ageing, in log volume: a choice, below the one published figure of Bradley et al. 2002, Br. J. Radiol. 75:506
(ventricle-to-brain ratio: 15.6 % a year in patients, 4.3 % in controls, 11.3 % between them, five patients); that
patients' ventricles grow faster than controls' is firm: Nestor et al. 2008, Brain 131:2443."""
DISEASE_LOSS_PER_YEAR = {
    "frontal": 0.014, "parietal": 0.018, "temporal": 0.022, "occipital": 0.010, "limbic": 0.022, "deep": 0.008,
    "cerebellum": 0.003,
}  # fmt: skip
"""Beyond ageing, share of a region's grey matter. The order is that of McDonald et al. 2009, Neurology 73:457: temporal
and limbic cortex first and most, then parietal and frontal, then occipital; the sizes are a choice within the range of
Thompson et al. 2003, J. Neurosci. 23:994, and Fjell et al. 2009, J. Neurosci. 29:15223."""

VISIT_INTERVAL_YEARS = 2.0
"""Between visits, give or take `VISIT_JITTER_YEARS`."""
VISIT_JITTER_YEARS = 0.25

_PERSON, _VISIT = 1, 4


@dataclass(frozen=True)
class Person:
    """What is drawn once and stays.

    Args:
        index: 0, 1, 2 …; with the seed it decides everything about the person.
        sex: "F" or "M".
        age: Years at the first visit.
        patient: Whether the person has the disease.
        stage: Years of disease at the first visit; 0 for controls.
        pace: Years of disease that a calendar year adds; 1 on average, 0 for controls.
        head_size_ratio: MNI volume over native volume, as in IXI; below 1.25 is a large head.
        ventricle: Deviation of the log volume of the ventricles from what age, sex and head predict.
        hippocampus: The same for the hippocampi.
        regions: Deviation of the share of grey matter lost in each of `REGIONS`.
    """

    index: int
    sex: str
    age: float
    patient: bool
    stage: float
    pace: float
    head_size_ratio: float
    ventricle: float
    hippocampus: float
    regions: tuple[float, ...]


@dataclass(frozen=True)
class State:
    """A person's brain at one visit.

    Args:
        age: Years.
        stage: Years of disease.
        ventricle: Log volume of the ventricles relative to the template, in MNI space, before random shape.
        hippocampus: The same for the hippocampi.
        loss: Share of the grey matter lost in each of `REGIONS`; below 0 is more than the template has.
    """

    age: float
    stage: float
    ventricle: float
    hippocampus: float
    loss: tuple[float, ...]


def draw_person(seed: int, index: int, *, patients: float) -> Person:
    """The person of this index; nobody else is drawn, so it does not matter how many there are.

    Args:
        seed: Of the cohort.
        index: Of the person.
        patients: Probability of being a patient, 0 to 1.
    """
    rng = np.random.default_rng((seed, _PERSON, index))
    chance = rng.random(4).tolist()
    normal = rng.standard_normal(5 + len(REGIONS)).tolist()
    sex = "M" if chance[0] < MALE_SHARE else "F"
    patient = bool(chance[1] < patients)
    youngest, oldest = PATIENT_AGE_RANGE if patient else AGE_RANGE
    mean, deviation = LOG_HEAD[sex]
    return Person(
        index=index,
        sex=sex,
        age=round(youngest + (oldest - youngest) * chance[2], 2),
        patient=patient,
        stage=STAGE_RANGE[0] + (STAGE_RANGE[1] - STAGE_RANGE[0]) * chance[3] if patient else 0.0,
        pace=float(np.exp(PACE_SD * normal[0])) if patient else 0.0,
        head_size_ratio=float(np.exp(mean + deviation * normal[1])),
        ventricle=VENTRICLE_SD * normal[2],
        hippocampus=HIPPOCAMPUS_SD * normal[3],
        regions=tuple(LOSS_COMMON_SD * normal[4] + LOSS_REGION_SD * own for own in normal[5:]),
    )


def visit_years(seed: int, index: int, visit: int) -> float:
    """Years from a person's first visit to this one, whose number counts from 0; 0 for the first."""
    if visit == 0:
        return 0.0
    jitter = np.random.default_rng((seed, _VISIT, index, visit)).uniform(-VISIT_JITTER_YEARS, VISIT_JITTER_YEARS)
    return round(visit * VISIT_INTERVAL_YEARS + float(jitter), 2)


def state_at(person: Person, years: float = 0.0) -> State:
    """The brain of a person some years after the first visit.

    Healthy ageing and disease add up; both go on smoothly, and what the person was born with stays.

    >>> person = draw_person(0, 3, patients=1.0)
    >>> state_at(person, 4.0).hippocampus < state_at(person).hippocampus
    True
    """
    age = person.age + years
    decades = (age - 50.0) / 10.0
    head = float(np.log(person.head_size_ratio)) - LOG_HEAD_MEAN
    male = 0.5 if person.sex == "M" else -0.5
    stage = person.stage + person.pace * years
    ventricle = (
        VENTRICLE_AT_50
        + VENTRICLE_AGE[0] * decades
        + VENTRICLE_AGE[1] * decades**2
        + VENTRICLE_SEX * male
        + VENTRICLE_HEAD * head
        + person.ventricle
        + DISEASE_VENTRICLE_PER_YEAR * stage
    )
    hippocampus = (
        HIPPOCAMPUS_AGE[0] * decades
        + HIPPOCAMPUS_AGE[1] * decades**2
        + HIPPOCAMPUS_SEX * male
        + HIPPOCAMPUS_HEAD * head
        + person.hippocampus
        + DISEASE_HIPPOCAMPUS_PER_YEAR * stage
    )
    since = (age - TEMPLATE_AGE) / 10.0
    loss = tuple(
        AGE_LOSS_PER_DECADE[region] * since + LOSS_HEAD * head + own + DISEASE_LOSS_PER_YEAR[region] * stage
        for region, own in zip(REGIONS, person.regions, strict=True)
    )
    held = float(np.clip(ventricle, *VENTRICLE_RANGE))
    return State(age=age, stage=stage, ventricle=held, hippocampus=hippocampus, loss=loss)
