"""Random changes of training images, as Keras layers for the input pipeline. Needs TensorFlow.

`layer(images, seed)` takes images (batch, x, y, z), axes RAS+, or slices (batch, x, y), float32 and without a channel
axis, and gives as many. What is drawn for an image depends on its own pair of seeds alone: not on the batch, nor on
earlier calls. Where a layer needs a value beyond the array's edge it takes the nearest one within.
"""

from kerasvae.data.augment.chain import Augmentation, augmented
from kerasvae.data.augment.intensity import RandomBiasField, RandomBlur, RandomGamma, RandomNoise
from kerasvae.data.augment.neighbours import MixNeighbours
from kerasvae.data.augment.random_layer import RandomLayer, row_seeds
from kerasvae.data.augment.spatial import RandomAffine, RandomElastic, RandomFlip

__all__ = [
    "Augmentation",
    "MixNeighbours",
    "RandomAffine",
    "RandomBiasField",
    "RandomBlur",
    "RandomElastic",
    "RandomFlip",
    "RandomGamma",
    "RandomLayer",
    "RandomNoise",
    "augmented",
    "row_seeds",
]
