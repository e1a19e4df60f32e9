"""Run folders written by hand, and the pages that they become, for tests of the report."""

import json
from html.parser import HTMLParser

import numpy as np

from kerasvae.analysis.report.page import write_report

ROLES = ["train"] * 6 + ["validation"] * 2 + ["calibration"] * 2 + ["test"] * 4
SHOWN = 2
KL = [3.0, 0.0, 5.0]
RECIPE = """
name = "synthetic"
[pipeline]
grid = "/home/someone/templates/mine.nii.gz"
intensity = { kind = "zscore" }
[model]
latent_size = 3
[training]
epochs = 3
"""


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def make_run(folder, *, names=None, roles=ROLES, ages=True, shape=(9, 11, 7), metrics=None):
    """A small run folder, written by hand."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = names or [f"sub-{index:02d}" for index in range(len(roles))]
    (folder / "recipe.toml").write_text(RECIPE)
    start = "Linear core: principal axes of the images."
    (folder / "run.json").write_text(json.dumps({"data": "/home/someone/study", "start": start}))
    (folder / "pipeline.json").write_text(
        json.dumps({"grid": {"shape": shape, "affine": np.eye(4).tolist(), "space": "MNI"}})
    )
    environment = {
        "versions": {"kerasvae": "0.1.0", "tensorflow": "2.21.0"}, "python": "3.11.7", "platform": "Linux", "seed": 0,
        "devices": ["CPU"], "command": "kerasvae train t.toml --data d --out r", "date": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    covariates = ["age", "sex"] if ages else []
    lines = ["\t".join(["participant_id", "session_id", "role", *covariates, "reason", "path"])]
    for index, (name, role) in enumerate(zip(names, roles, strict=True)):
        cells = [["31.5", "n/a"][index == 3], "MF"[index % 2]] if ages else []
        lines.append("\t".join([name, "", role, *cells, "", f"/home/someone/study/{name}_T1w.nii.gz"]))
    path = "/home/someone/study/sub-99_T1w.nii.gz"
    reason = f"{path} must be a 3-D image, but received 4 dimensions"
    lines.append("\t".join(["sub-99", "ses-1", "excluded", *(["40", "F"] if ages else []), reason, path]))
    (folder / "scans.tsv").write_text("\n".join(lines) + "\n")
    columns = (
        "epoch,val_elbo,val_kl,val_calibrated_elbo,val_explained_variance,val_identification,val_active_units,elbo,kl"
    )
    rows = ["0,-900,2,-800,0.1,0.5,1,,", "1,-800,7,-600,0.3,1,2,-700,8", "2,-700,8,-500.5,0.4,1,2,-600,9",
            "3,-710,8,-501,0.4,1,2,-590,9"]  # fmt: skip
    (folder / "history.csv").write_text("\n".join([f"{columns},val_active_units,elbo,kl", *rows]) + "\n")
    figures = {
        "role": "test", "explained_variance": 0.3711, "explained_variance_pca": 0.4422, "identification": 1.0,
        "identification_pca": 0.75, "identification_chance": 0.25, "variance_ratio": 0.5, "variance_ratio_pca": 0.6,
        "active_units": 2, "mutual_information": 1.2, "kl_nats": 8.0, "kl_per_dimension": KL, "elbo_nats": -1630.97,
        "elbo_nats_per_voxel": -0.05, "beta": 1.0, "sigma": 0.25, "n_voxels": 300, "latent_size": 3, "seconds": 42.0,
        **{f"n_{role}": roles.count(role) for role in ("train", "validation", "calibration", "test")},
        **(metrics or {}),
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(figures))
    latents = ["participant_id\tsession_id\trole\tmean_0\tmean_1\tmean_2"]
    for name, role in zip(names, roles, strict=True):
        latents.append(f"{name}\tn/a\t{role}\t{rng.standard_normal():.4f}\t0\t{rng.standard_normal():.4f}")
    (folder / "latents.tsv").write_text("\n".join(latents) + "\n")
    held_out = [name for name, role in zip(names, roles, strict=True) if role == figures["role"]][-SHOWN:]
    mask = np.zeros(shape, bool)
    mask[1:-1, 1:-1] = True
    images = rng.standard_normal((3, len(held_out), *shape)).astype("f4")
    np.savez_compressed(
        folder / "examples.npz", participant_id=np.array(held_out), image=images[0], reconstruction=images[1] / 2,
        pca=images[2] / 2, mean_image=np.zeros(shape, "f4"), mask=mask, affine=np.diag([2.0, 2.0, 3.0, 1.0]),
    )  # fmt: skip
    return folder


def page_of(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))
