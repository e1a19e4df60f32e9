"""Fixtures: where real data lie, and a small cohort of blobs for what needs files but no anatomy."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads of one would wait for those of the other
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _collected():
    """TensorFlow's graphs hold each other: left alone they fill the memory and slow whatever follows."""
    yield
    if "tensorflow" in sys.modules:
        gc.collect()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data: KERASVAE_DATA, by default shared/data beside the project."""
    folder = Path(os.environ.get("KERASVAE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data are absent: {folder} does not exist; set KERASVAE_DATA")
    return folder


def write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array.astype(np.float32), affine)
    image.set_sform(affine, 4)
    nibabel.save(image, path)
    return path


def blob_affine() -> np.ndarray:
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = (-60, -68, -56)
    return affine


def blob(seed: int, shape: tuple[int, int, int] = (16, 18, 15)) -> np.ndarray:
    """A bright ellipsoid whose left, right and front parts vary from person to person."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    factors = rng.standard_normal(4)
    inside = x**2 + y**2 + z**2 < 0.8
    image = 100 + 15 * factors[0] * x + 15 * factors[1] * y + 10 * factors[2] * z + 12 * factors[3] * x * y
    image += rng.standard_normal(shape) * 2
    return np.where(inside, image, 0)


@pytest.fixture
def blob_cohort(tmp_path: Path) -> Path:
    """A BIDS derivative of 20 people on an 8 mm lattice."""
    return make_blob_cohort(tmp_path / "cohort", 20)


def make_blob_cohort(root: Path, people: int) -> Path:
    import json

    root.mkdir(parents=True)
    description = {
        "Name": "blobs",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "t"}],
    }
    (root / "dataset_description.json").write_text(json.dumps(description))
    lines = ["participant_id\tage\tsex\tqc"]
    for person in range(people):
        name = f"sub-{person:02d}"
        lines.append(f"{name}\t{20 + 2.5 * person}\t{'MF'[person % 2]}\tpass")
        write_image(root / name / "anat" / f"{name}_desc-brain_T1w.nii.gz", blob(person), blob_affine())
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    return root


BLOB_RECIPE = """
name = "blobs"
[cohort]
select = { suffix = "T1w", desc = "brain" }
covariates = ["age", "sex"]
[pipeline]
grid = "native"
intensity = { kind = "zscore" }
check_alignment = false
[split]
train = 0.5
validation = 0.2
calibration = 0.1
test = 0.2
stratify = ["sex"]
[model]
latent_size = 3
filters = [4, 8]
dropout = 0.2
[training]
epochs = 4
batch_size = 4
learning_rate = 1e-3
"""


@pytest.fixture
def blob_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "blobs.toml"
    path.write_text(BLOB_RECIPE)
    return path
