"""What a study leaves in a run folder, written by hand, for tests of the report."""

import json

import nibabel
import numpy as np

from tests.tables import write_rows

SHAPE = (9, 11, 7)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
POSITIONS = [-2.0, -1.0, 0.0, 1.0, 2.0]


def write_image(path, values):
    nibabel.save(nibabel.Nifti1Image(values.astype("f4"), AFFINE), path)


def association(variable, dimension, r, p_family, *, people=40, signed=True):
    """A row of associations.tsv."""
    single = dimension != "joint"
    slope = {"slope": r / 10, "low": r / 10 - 0.01, "high": r / 10 + 0.01, "stderr": 0.005, "stderr_posterior": 0.006}
    ends = {"r_low": r - 0.2, "r_high": r + 0.2}
    known = signed and single
    return {
        "variable": variable, "dimension": dimension, "people": people, "scans": people,
        **(slope if known else dict.fromkeys(slope, "n/a")), "statistic": 3.0, "r": r,
        **(ends if known else dict.fromkeys(ends, "n/a")), "p": p_family / (2 if single else 1),
        "p_family": p_family,
        "p_bonferroni": min(1.0, 1.5 * p_family), "q": p_family, "p_model": 0.01 if single else "n/a",
    }  # fmt: skip


def write_associations(folder, names=("age", "sex"), people=40):
    """Of the first variable dimension 1, of the last 0; a group of three levels between."""
    told = {
        names[0]: [(0.1, 0.9), (0.55, 0.004), (-0.2, 0.3), (0.7, 0.002)],
        "group": [(0.3, 0.5), (0.2, 0.5), (0.1, 0.5), (0.4, 0.2)],
        names[1]: [(-0.47, 0.03), (0.0, 1.0), (0.3, 0.06), (0.6, 0.01)],
    }
    rows = [
        association(name, dimension, r, p, people=people, signed=name != "group")
        for name, cells in told.items()
        for dimension, (r, p) in zip([0, 1, 2, "joint"], cells, strict=True)
    ]
    write_rows(folder / "associations.tsv", rows)
    settings = {"covariates": ["head_size"], "roles": ["test", "train"], "permutations": 1999, "seed": 0}
    (folder / "associations.json").write_text(json.dumps({"r": {"Description": ""}, "Settings": settings}))
    return rows


def figure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def write_predictions(folder, name="age", people=56):
    by = {
        "latents": {"r": figure(0.78, 0.68, 0.86), "mae": figure(8.9, 7.3, 10.5), "calibration": {"slope": 1.0}},
        "pca": {"r": figure(0.82, 0.74, 0.89), "mae": figure(8.1, 6.6, 10.0), "calibration": None},
        "covariates": {"r": figure(0.15), "mae": figure(14.2)},
    }
    figures = {
        name: {
            "kind": "number", "levels": [], "people": people, "left_out": 0, "by": by,
            "differences": {"latents - pca": {"r": figure(-0.04, -0.08, -0.01), "mae": figure(0.8, 0.2, 1.5)}},
            "permutation": {"latents": {"statistic": "r", "value": 0.78, "mean": 0.01, "p": 0.01}},
        }
    }  # fmt: skip
    settings = {"runs": ["a", "b"], "covariates": ["head_size"], "seed": 0, "permutations": 99}
    (folder / "predictions.json").write_text(json.dumps({"Settings": settings, "Figures": figures}))


def inside():
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    return mask


def write_maps(folder, name="age", meaning="a unit more of age", dimensions=1):
    """A slope that is 1 in the left half and −1 in the right; a traversal along it and along dimensions."""
    maps = folder / "maps"
    maps.mkdir(exist_ok=True)
    slope = np.where(np.arange(SHAPE[0])[:, None, None] < 4, 1.0, -1.0) * inside()
    about = {"People": 40, "Covariates": ["sex"], "Bootstraps": 200, "Bend": 0.031, "Reach": 12.5}
    walk = {"Values": [50 + 12.5 * p for p in POSITIONS], "CohortRange": [26.0, 75.0]}
    for kind, values in {"slope": slope, "z": 3 * slope}.items():
        write_image(maps / f"{name}_{kind}.nii.gz", values)
    (maps / f"{name}_slope.json").write_text(json.dumps(about | {"Unit": f"model units for {meaning}"}))
    base = 5.0 * inside()
    along = [
        (name, slope, about | walk),
        *((f"dimension-{i:02d}", -slope, {"StandardDeviation": 1.5}) for i in range(dimensions)),
    ]
    for each, change, own in along:
        write_image(maps / f"{each}_traversal.nii.gz", np.stack([base + p * change for p in POSITIONS], axis=-1))
        told = own | {"Positions": POSITIONS, "Step": "a step", "Description": "", "Command": "kerasvae maps"}
        (maps / f"{each}_traversal.json").write_text(json.dumps(told))
    return slope


def judged(name, p=(0.5, 0.5, 0.5), q=(0.9, 0.9, 0.9), **others):
    """A row of deviations.tsv."""
    row = {"participant_id": name, "session_id": "n/a", "role": "test"}
    for score, p_score, q_score in zip(("extent", "focus", "distance"), p, q, strict=True):
        row |= {score: 2 - p_score, f"p_{score}": p_score, f"q_{score}": q_score}
    place = {"focus_x": 4.0, "focus_y": 8.0, "focus_z": 9.0}
    return row | place | {"region": "n/a", "p_regions": "n/a", "beyond": 0.051, "told": 0.0} | others


def write_deviations(folder, rows, calibration=30):
    deviations = folder / "deviations"
    deviations.mkdir()
    write_rows(deviations / "deviations.tsv", rows)
    settings = {"covariates": ["age"], "calibration_people": calibration, "roles": ["test"]}
    (deviations / "deviations.json").write_text(json.dumps({"Settings": settings}))
    z = np.random.default_rng(0).normal(size=SHAPE) * inside()
    for row in rows:
        session = "" if row["session_id"] == "n/a" else f"_{row['session_id']}"
        if "/" not in row["participant_id"]:
            write_image(deviations / f"{row['participant_id']}{session}_z.nii.gz", z)
    return z


def space(name, harmonized, accuracy, p, age=None):
    kept = {} if age is None else {"age": age}
    return {
        "name": name, "harmonized": harmonized, "dimensions": 3, "site_accuracy": accuracy, "site_chance": 0.5,
        "site_p": p, "kept": kept, "measures": dict.fromkeys(kept, "r"),
    }  # fmt: skip


def write_site(folder, spaces=None, site="scanner"):
    spaces = spaces or [space("latents", False, 0.9, 0.005, 0.6), space("latents", True, 0.51, 0.4, 0.58)]
    sites = {"A": {"scans_fitted": 20, "people_judged": 9}, "B": {"scans_fitted": 21, "people_judged": 11}}
    content = {"site": site, "sites": sites, "scans_left_out": 1, "sites_left_out": {"C": 3}, "spaces": spaces}
    (folder / "harmonization.json").write_text(json.dumps(content))


def write_study(folder, rows=None):
    """All of it."""
    write_associations(folder)
    write_predictions(folder)
    write_maps(folder)
    write_deviations(folder, rows or [judged("sub-10"), judged("sub-11", (0.032, 0.1, 0.2), (0.08, 0.4, 0.5))])
    write_site(folder)
    return folder
