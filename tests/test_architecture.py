"""The rules of the house that no linter sees: what is imported, and how fast."""

import subprocess
import sys

HEAVY = ("tensorflow", "keras", "tensorflow_probability", "tf_keras", "sklearn", "nilearn", "pandas", "matplotlib")


def python(code, *options):
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_library_and_serving_import_no_tensorflow():
    done = python(f"import sys, kerasvae, kerasvae_serving; print([n for n in {HEAVY} if n in sys.modules])")
    assert done.stdout.strip() == "[]"


def test_what_serving_needs_works_where_tensorflow_is_not_installed():
    """An import of any training package is made an error; preprocessing, bundles and engine must not notice."""
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import kerasvae, kerasvae_serving, kerasvae.cli
import kerasvae.preprocess, kerasvae.bundle, kerasvae.types, kerasvae.errors, kerasvae.storage
from kerasvae import Pipeline
import numpy as np
pipeline = Pipeline(grid="mni-8mm", intensity={{"kind": "range", "low": 0, "high": 1}})
import nibabel
image = nibabel.Nifti1Image(np.random.default_rng(0).random((20, 24, 20), np.float32), pipeline.grid.matrix)
assert pipeline.apply(image, check=False).shape == pipeline.grid.shape
try:
    kerasvae.VAE
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert python(code).stdout.strip() == "keras"


def test_public_names_are_the_promised_ones():
    import kerasvae

    for name in kerasvae.__all__:
        assert getattr(kerasvae, name) is not None
    assert set(dir(kerasvae)) == set(kerasvae.__all__)


def test_another_backend_is_refused_with_one_sentence():
    code = "import os; os.environ['KERAS_BACKEND'] = 'jax'\nimport kerasvae\nkerasvae.VAE"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith('kerasvae.errors.ModelError: KERAS_BACKEND must be "tensorflow"')
    )
