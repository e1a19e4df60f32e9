"""The only preprocessing code: training, export and serving all call it. No TensorFlow."""

from kerasvae.preprocess.alignment import AlignmentContract, AlignmentLimits, fit_contract
from kerasvae.preprocess.fit import MaskRule, fit_mask, fit_pipeline
from kerasvae.preprocess.grid import fit_to_shape, grid_of, named_grid, unfit_from_shape
from kerasvae.preprocess.intensity import Intensity, PercentileIntensity, RangeIntensity, Scaling, ZScoreIntensity
from kerasvae.preprocess.nifti import as_volume, read_volume, write_image, write_volume
from kerasvae.preprocess.orient import Orientation, orientation_of
from kerasvae.preprocess.pipeline import Pipeline
from kerasvae.preprocess.resample import gaussian_variance, resample

__all__ = [
    "AlignmentContract",
    "AlignmentLimits",
    "Intensity",
    "MaskRule",
    "Orientation",
    "PercentileIntensity",
    "Pipeline",
    "RangeIntensity",
    "Scaling",
    "ZScoreIntensity",
    "as_volume",
    "fit_contract",
    "fit_mask",
    "fit_pipeline",
    "fit_to_shape",
    "gaussian_variance",
    "grid_of",
    "named_grid",
    "orientation_of",
    "read_volume",
    "resample",
    "unfit_from_shape",
    "write_image",
    "write_volume",
]
