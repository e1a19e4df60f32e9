"""Encoders and decoders as plain Keras models; any Keras model of the right shapes serves as well."""

from kerasvae.backend import require_tensorflow

require_tensorflow()

from kerasvae.networks.conv import conv_decoder, conv_encoder  # noqa: E402
from kerasvae.networks.core import Core, LeftOut, core_codes, fit_core  # noqa: E402
from kerasvae.networks.dense import dense_decoder, dense_encoder  # noqa: E402
from kerasvae.networks.ladder import ladder_encoder  # noqa: E402
from kerasvae.networks.linear import linear_start, use_core  # noqa: E402
from kerasvae.networks.norm import GroupNorm  # noqa: E402
from kerasvae.networks.prior_covariance import SmoothPrior  # noqa: E402
from kerasvae.networks.refine import Refine  # noqa: E402

__all__ = [
    "Core",
    "GroupNorm",
    "LeftOut",
    "Refine",
    "SmoothPrior",
    "conv_decoder",
    "conv_encoder",
    "core_codes",
    "dense_decoder",
    "dense_encoder",
    "fit_core",
    "ladder_encoder",
    "linear_start",
    "use_core",
]
