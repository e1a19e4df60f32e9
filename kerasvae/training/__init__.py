"""Training: recipes, the loop, run folders. `recipe` and `run` need no TensorFlow until a model is loaded."""

from kerasvae.training.recipe import Recipe, load_recipe, shipped_recipes
from kerasvae.training.run import Run, load_run

__all__ = ["Recipe", "Run", "load_recipe", "load_run", "shipped_recipes"]
