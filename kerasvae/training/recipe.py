"""Recipes: everything a training depends on but the data, as a TOML file.

Every key has a default; an unknown key is refused with the nearest valid one. Recipes that ship with the package go
by name (`demo`, `t1-4mm`, `gm-4mm`). The resolved copy in the run folder names every key.
"""

from __future__ import annotations

import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kerasvae.errors import ArgumentError, KerasVAEError, RecipeError, nearest
from kerasvae.preprocess import Intensity
from kerasvae.training.schedules import Cosine, Linear, Schedule

__all__ = ["Recipe", "load_recipe", "shipped_recipes"]

Fraction = Annotated[float, Field(ge=0, le=1)]

SHAPES = {"model_type": "table", "model_attributes_type": "table", "dict_type": "table", "tuple_type": "list"}
"""What TOML calls the values that pydantic asks for."""


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class CohortSection(Section):
    """`[cohort]`: which images, which people."""

    select: dict[str, str] = Field({"suffix": "T1w"}, description="BIDS entities of the images")
    covariates: tuple[str, ...] = Field((), description="columns that every scan must have")
    exclude: dict[str, tuple[str, ...]] = Field({}, description="column to values whose scans are left out")
    incomplete: Literal["refuse", "leave_out"] = Field(
        "refuse", description="people with a row and no image, or reverse"
    )
    bad_images: Literal["refuse", "skip"] = Field("refuse", description="images that cannot be used")


class PipelineSection(Section):
    """`[pipeline]`: from a file to the model grid."""

    grid: str = Field("mni-4mm", description="named grid, path of a template image, or native")
    smooth_fwhm_mm: float = Field(0.0, ge=0, description="Gaussian smoothing beside anti-aliasing, mm")
    intensity: Intensity = Field(..., description="normalisation")
    mask: Literal["signal", "mean", "none"] = Field("signal", description="rule of the group mask")
    modality: str = Field("T1w", description="what the images measure")
    skull_stripped: bool = Field(True, description="whether everything but the brain was removed")
    registration: str = Field("affine to MNI152", description="what brought the images into the space")
    check_alignment: bool = Field(True, description="refuse scans that are plainly not aligned")


class SplitSection(Section):
    """`[split]`: shares of the people."""

    train: Fraction = Field(0.6, description="share of the people who fit weights")
    validation: Fraction = Field(0.1, description="of those who decide: early stopping, every choice")
    calibration: Fraction = Field(0.1, description="of those who set scales and percentiles")
    test: Fraction = Field(0.2, description="of those who are read once and reported")
    stratify: tuple[str, ...] = Field((), description="covariates to balance over the roles")
    column: str = Field("", description="column of the table that holds each scan's role")
    seed: int = Field(0, ge=0, description="seed of the draw")
    folds: int = Field(0, ge=0, description="parts of the people, one of which is the test; 0: the share above is")
    fold: int = Field(0, ge=0, description="which of these parts, from 0")

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> SplitSection:
        if self.folds == 1 or self.fold >= max(self.folds, 1) or (self.folds and self.column):
            raise ArgumentError(
                "folds",
                rule="be 0, or 2 and more with a fold below it and no column of roles",
                got=f"folds {self.folds}, fold {self.fold}, column {self.column!r}",
                fix="Leave them out, or see `kerasvae cross-validate`",
            )
        return self

    def fractions(self) -> dict[str, float]:
        """Role to share."""
        return {role: getattr(self, role) for role in ("train", "validation", "calibration", "test")}


class Strength(Section):
    """A table within `[augment]`, shown as a recipe writes it."""

    def __repr__(self) -> str:
        return _toml(self.model_dump())


class AffineStrength(Strength):
    """`augment.affine`, see `kerasvae.RandomAffine`."""

    degrees: float = Field(0.0, ge=0, le=45)
    mm: float = Field(0.0, ge=0)
    scale: float = Field(0.0, ge=0, le=0.5)


class ElasticStrength(Strength):
    """`augment.elastic`, see `kerasvae.RandomElastic`."""

    mm: float = Field(0.0, ge=0)
    smoothness_mm: float = Field(24.0, ge=1)

    @model_validator(mode="after")
    def _without_folds(self) -> ElasticStrength:
        if self.mm > self.smoothness_mm / 5:
            raise ArgumentError(
                "mm",
                rule="be at most a fifth of smoothness_mm, or images may fold",
                got=f"{self.mm:g} and {self.smoothness_mm:g}",
                fix="Lower it, or raise smoothness_mm",
            )
        return self


class BiasFieldStrength(Strength):
    """`augment.bias_field`, see `kerasvae.RandomBiasField`."""

    strength: float = Field(0.0, ge=0)
    smoothness_mm: float = Field(60.0, ge=1)


class MixStrength(Strength):
    """`augment.mix`, see `kerasvae.MixNeighbours`."""

    share: float = Field(0.0, ge=0, le=0.5)
    neighbours: int = Field(5, ge=1)


class AugmentSection(Section):
    """`[augment]`: random changes of the training images, in this order; all are off at 0."""

    mix: MixStrength = Field(MixStrength(), description="a person and a near one: greatest weight of the other")
    flip: bool = Field(False, description="exchange left and right in half of the images")
    affine: AffineStrength = Field(AffineStrength(), description="rotation, shift and change of size lie within ± this")
    elastic: ElasticStrength = Field(ElasticStrength(), description="standard deviation of a smooth displacement, mm")
    gamma: float = Field(0.0, ge=0, le=2, description="logarithm of the contrast's exponent lies within ± this")
    bias_field: BiasFieldStrength = Field(
        BiasFieldStrength(), description="standard deviation of a smooth field, the logarithm of the gain"
    )
    blur_fwhm_mm: float = Field(0.0, ge=0, le=50, description="widest Gaussian, full width at half maximum in mm")
    noise: float = Field(0.0, ge=0, description="noise, in standard deviations of the training images")


class ModelSection(Section):
    """`[model]`: networks and distributions."""

    latent_size: int = Field(32, ge=1, description="number of latent dimensions")
    network: Literal["conv", "dense", "refine"] = Field(
        "conv",
        description="kind of encoder and decoder; refine: corrections of a linear start by each voxel's surroundings",
    )
    refine: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16, 16), min_length=1, description="channels of refine's hidden layers"
    )
    filters: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16, 32, 64), description="channels of each level of conv; each level halves the axes"
    )
    norm: Literal["group", "none"] = Field("group", description="normalisation: group or none")
    dropout: float = Field(0.0, ge=0, lt=1, description="rate before the last layer of the encoder")
    start: Literal["linear", "random"] = Field("linear", description="probabilistic PCA as linear core, or nothing")
    core_mirror: bool | Literal["auto"] = Field(
        "auto", description="linear start: learn from mirror images of people, too; auto asks people left out"
    )
    core_prior: Literal["auto", "none", "variance", "deformation"] = Field(
        "auto", description="linear start: smooth prior of the covariance; auto chooses on training people"
    )
    core_step: int = Field(1, ge=1, description="linear start: voxels between knots of axes, for large grids")
    posterior: str = Field("normal", description="kind of the posterior")
    posterior_options: dict[str, Any] = Field({}, description="what its class takes")
    prior: str = Field("standard_normal", description="kind of the prior")
    prior_options: dict[str, Any] = Field({}, description="what its class takes")
    likelihood: str = Field("normal", description="kind of the likelihood")
    likelihood_options: dict[str, Any] = Field({}, description="what its class takes")
    scale: Literal["optimal", "fixed", "learned", "per_voxel", "decoder", "voxel_mean"] = Field(
        "optimal", description="scale of the normal likelihood"
    )
    stddev: float = Field(1.0, gt=0, description="the scale where it is fixed, and at the start")
    condition: tuple[str, ...] = Field((), description="covariates given to encoder, decoder and conditional priors")
    categorical: tuple[str, ...] = Field((), description="those whose numbers are codes of categories")
    missing: Literal["refuse", "mean"] = Field("refuse", description="a missing value: refuse it, or take the mean")
    target: str = Field("", description="covariate to regress on the image: a RegressionVAE")


class ObjectiveSection(Section):
    """`[objective]`: what is minimised."""

    kind: str = Field("elbo", description="kind of the objective")
    options: dict[str, Any] = Field({}, description="what its class takes")
    independent_of: str = Field("", description="category, e.g. site, of which codes are not to tell")
    independence: Literal["hsic", "adversary"] = Field("hsic", description="the price for what they tell nevertheless")
    independence_options: dict[str, Any] = Field({}, description="what its class takes, e.g. site_weight")
    schedules: dict[str, dict[str, Any]] = Field({}, description="a number of the model to the schedule that moves it")

    @field_validator("schedules")
    @classmethod
    def _schedules(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for config in value.values():
            Schedule.from_config(config)
        return value


class TrainingSection(Section):
    """`[training]`: the loop."""

    epochs: int = Field(60, ge=1, description="passes over the training people, at most")
    batch_size: int = Field(8, ge=1, description="scans a step")
    learning_rate: float = Field(1e-4, gt=0, description="of Adam")
    beta: float = Field(1.0, ge=0, description="weight of the KL; 1 is the ELBO")
    warm_up: Fraction = Field(0.0, description="fraction of the steps over which beta rises from 0")
    patience: int = Field(10, ge=1, description="epochs without a better validation ELBO before training stops")
    decay: Literal["none", "cosine"] = Field("none", description="of the learning rate, to 0 at the last epoch")
    cross_fit: bool = Field(True, description="linear start: train on people whom the core was not fitted to")
    guard: Literal["warn", "stop", "remedy"] = Field(
        "warn", description="what follows a lasting collapse: a CollapseGuard"
    )
    tensorboard: bool = Field(False, description="write every figure of every epoch for TensorBoard, too")
    refit: bool = Field(True, description="at last, learn from training and validation people together")
    seed: int = Field(0, ge=0, description="of weights, order and draws")
    deterministic: bool = Field(True, description="same machine, same versions: same result, bit for bit")

    @property
    def learned_from(self) -> tuple[str, ...]:
        """Roles of the people whom the final weights are fitted to."""
        return ("train", "validation") if self.refit else ("train",)


class Recipe(Section):
    """All of it."""

    name: str = "recipe"
    cohort: CohortSection = CohortSection()
    pipeline: PipelineSection
    split: SplitSection = SplitSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    objective: ObjectiveSection = ObjectiveSection()
    training: TrainingSection = TrainingSection()

    def schedules(self) -> dict[str, Schedule]:
        """What moves numbers of the model during training; `training.warm_up` is short for a line from 0 to beta.

        Raises:
            RecipeError: If beta is moved by both.
        """
        section = self.training
        schedules = {name: Schedule.from_config(config) for name, config in self.objective.schedules.items()}
        if section.warm_up:
            if "beta" in schedules:
                raise RecipeError(
                    "training.warm_up",
                    rule="be 0 where objective.schedules moves beta",
                    got=section.warm_up,
                    fix="Take one of them out",
                )
            schedules["beta"] = Linear(0.0, section.beta, end=section.warm_up)
        if section.decay == "cosine":
            schedules["learning_rate"] = Cosine(section.learning_rate, 0.0)
        return schedules

    def first_candidate(self) -> int:
        """The first epoch whose weights may be the best: all numbers of the model have arrived.

        It is the last one where codes pay for what they tell of a site: the ELBO, which chooses, would not.
        """
        if self.objective.independent_of:
            return self.training.epochs
        numbers = [schedule for name, schedule in self.schedules().items() if name != "learning_rate"]
        settled = max((schedule.settled for schedule in numbers), default=0.0)
        return math.ceil(settled * self.training.epochs)

    def to_toml(self) -> str:
        """Every key with its value, with the description as a comment."""
        lines = [f"name = {_toml(self.name)}"]
        for table, _field in type(self).model_fields.items():
            section = getattr(self, table)
            if not isinstance(section, Section):
                continue
            lines.append(f"\n[{table}]")
            for key, info in type(section).model_fields.items():
                note = f"  # {info.description}" if info.description else ""
                lines.append(f"{key} = {_toml(section.model_dump(mode='json')[key])}{note}")
        return "\n".join(lines) + "\n"


def shipped_recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("kerasvae") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(source: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        source: Path of a TOML file, or the name of a shipped recipe.
        settings: Overrides as ``"section.key=value"``, values in TOML (a bare word is taken as text).

    Raises:
        RecipeError: If the file is missing, not UTF-8 or not TOML, a key is unknown, or a value is outside its rule.
    """
    text = _read(source)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(source, rule="be valid TOML", got=str(error), fix="Correct the line it names") from error
    content.setdefault("name", Path(source).stem)
    for setting in settings:
        _override(content, setting)
    return parse_recipe(content, str(source))


def parse_recipe(content: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from nested dictionaries; `source` is used in messages."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise _explain(error, source) from error


def _read(source: str | Path) -> str:
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(path, rule="be a readable TOML file", got=error.strerror, fix="Check the path") from error
        except UnicodeDecodeError as error:
            got = f"the byte 0x{error.object[error.start]:02x} at position {error.start}"
            raise RecipeError(path, rule="be UTF-8 text", got=got, fix="Save it as UTF-8") from error
    names = shipped_recipes()
    if str(source) not in names:
        close = nearest(str(source), names)
        raise RecipeError(
            "The recipe",
            rule=f"be a TOML file or one of {', '.join(names)}",
            got=repr(str(source)),
            fix=f"Did you mean {close!r}?" if close else "Give the path of a file that ends in .toml",
        )
    return (resources.files("kerasvae") / "recipes" / f"{source}.toml").read_text(encoding="utf-8")


def _override(content: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key.strip():
        raise RecipeError("--set", rule="look like section.key=value", got=repr(setting), fix="Add what is missing")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *tables, last = key.strip().split(".")
    for table in tables:
        content = content.setdefault(table, {})
        if not isinstance(content, dict):
            raise RecipeError("--set", rule="name a key of a table", got=repr(key), fix="Check the recipe's tables")
    content[last] = value


def _explain(error: ValidationError, source: str) -> RecipeError:
    """The first problem as one sentence; keys that are missing come last, for they may only be misspelt."""
    problem = min(error.errors(), key=lambda each: each["type"] == "missing")
    kind, location = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        return _unknown_key(location, source)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_kind(location, problem["input"], source)
    where, cause = _place(location), problem.get("ctx", {}).get("error")
    if isinstance(cause, KerasVAEError):
        return RecipeError(f"The key '{where}.{cause.what}' of {source}", rule=cause.rule, got=cause.got, fix=cause.fix)
    rule = problem["msg"][0].lower() + problem["msg"][1:]
    if kind in SHAPES:
        rule = f"be a {SHAPES[kind]}"
    return RecipeError(
        f"The key {where!r} of {source}",
        rule=rule.removeprefix("input should ").replace("field required", "be given"),
        got="nothing" if kind == "missing" else repr(problem["input"]),
        fix="Correct the recipe",
    )


def _unknown_key(location: Sequence[Any], source: str) -> RecipeError:
    """A misspelt key is met with the nearest valid one."""
    valid = sorted({key for model in _models_at(location[:-1]) for key in model.model_fields})
    close = nearest(str(location[-1]), valid)
    return RecipeError(
        f"The key {_place(location)!r} of {source}",
        rule="be one that recipes have",
        got="an unknown key",
        fix=f"Did you mean {close!r}?" if close else f"Valid here: {', '.join(valid)}",
    )


def _wrong_kind(location: Sequence[Any], table: Mapping[str, Any], source: str) -> RecipeError:
    """A table, one of several kinds, whose `kind` is unknown or not given; the key itself may be misspelt."""
    models = _models_at(location)
    valid = [model.model_fields["kind"].default for model in models]
    unknown = [key for key in table if all(key not in model.model_fields for model in models)]
    if "kind" not in table and unknown:
        return _unknown_key([*location, "", unknown[0]], source)  # "": the kind, which pydantic could not tell
    close = nearest(str(table.get("kind")), valid)
    return RecipeError(
        f"The key '{_place(location)}.kind' of {source}",
        rule=f"be one of {', '.join(map(repr, valid))}",
        got=repr(table["kind"]) if "kind" in table else "nothing",
        fix=f"Did you mean {close!r}?" if close else "Choose one",
    )


def _place(location: Sequence[Any]) -> str:
    """A place as a recipe writes it; after `intensity`, pydantic puts the kind, which is no key."""
    return ".".join(str(part) for above, part in zip(("", *location), location, strict=False) if above != "intensity")


def _models_at(location: Sequence[Any]) -> list[Any]:
    """The model at a place in the recipe; all members of a union (such as intensity)."""
    models: list[Any] = [Recipe]
    for part in location:
        models = [
            member
            for each in models
            for member in _models_in(each.model_fields[part].annotation if part in each.model_fields else each)
        ]
    return models


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return [model for member in typing.get_args(annotation) for model in _models_in(member)]
    return []


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + re.sub(r'["\\\x00-\x1f\x7f]', _escape, value) + '"'
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items() if item is not None)
        return "{ " + inner + " }" if inner else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _escape(match: re.Match[str]) -> str:
    """What may not stand as it is in a TOML string: quotes, backslashes and control characters."""
    character = match[0]
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"
