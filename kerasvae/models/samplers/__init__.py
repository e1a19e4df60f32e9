"""Samplers: where the codes of new images come from, once a model is trained."""

from kerasvae.models.samplers.base import PriorSampler, Sampler
from kerasvae.models.samplers.mixture import MixtureSampler
from kerasvae.models.samplers.two_stage import TwoStageSampler

__all__ = ["MixtureSampler", "PriorSampler", "Sampler", "TwoStageSampler"]
