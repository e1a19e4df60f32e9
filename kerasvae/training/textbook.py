"""The VAE of the textbooks, everything else equal: what a recipe is to be compared with."""

from __future__ import annotations

from kerasvae.training.recipe import ObjectiveSection, Recipe

__all__ = ["textbook"]


def textbook(recipe: Recipe) -> Recipe:
    """The recipe with the loss that tutorials write, "mean squared error + KL", and a random start.

    Cohort, pipeline, split, networks and latent size stay; where a recipe only refines a line, the networks are
    convolutional. In nats the mean over N voxels of (x − x̂)² is a normal
    likelihood with the fixed variance N/2, thousands of times the residual's: the KL counts as many times too much, and
    of brains, which differ little from their mean, nothing is left but the mean.

    The objective is the ELBO, with 60 epochs and none left out early, and the learning rate that Adam has by default,
    10⁻³. Batch size, seed and guard stay.
    """
    model = recipe.model.model_copy(
        update={
            "start": "random",
            "network": "conv" if recipe.model.network == "refine" else recipe.model.network,
            "scale": "voxel_mean",
            **{"posterior": "normal", "prior": "standard_normal", "likelihood": "normal"},
            **{"posterior_options": {}, "prior_options": {}, "likelihood_options": {}},
        }
    )
    training = recipe.training.model_copy(
        update={"epochs": 60, "patience": 60, "learning_rate": 1e-3, "decay": "none", "beta": 1.0, "warm_up": 0.0}
    )
    update = {"name": f"{recipe.name}-textbook", "model": model, "training": training, "objective": ObjectiveSection()}
    return recipe.model_copy(update=update)
