"""Encoders and decoders as plain Keras models; any Keras model of the right shapes serves as well."""

from kerasvae.networks.conv import conv_decoder, conv_encoder
from kerasvae.networks.dense import dense_decoder, dense_encoder
from kerasvae.networks.linear import linear_start

__all__ = ["conv_decoder", "conv_encoder", "dense_decoder", "dense_encoder", "linear_start"]
