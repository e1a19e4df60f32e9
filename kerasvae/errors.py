"""The one error form: what is wrong, the rule, what was received, and how to fix it.

Every error a user can cause is a subclass of `KerasVAEError` and reads as one sentence and a remedy.
`exit_code` is the exit status of the command line (1: the work failed, 2: the call was wrong);
`http_status` is what a server answers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KerasVAEError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: The argument, file or field that is wrong.
        rule: What it must be, as a phrase that follows "must", e.g. ``"be a 3-D image"``.
        got: What was received, as a phrase.
        fix: How to mend it, as an imperative sentence without the final stop.

    >>> str(VolumeError("scan.nii.gz", rule="be a 3-D image", got="4 dimensions (91, 109, 91, 200)",
    ...                 fix="Choose one volume of the series"))
    'scan.nii.gz must be a 3-D image, but received 4 dimensions (91, 109, 91, 200). Choose one volume of the series.'
    """

    exit_code = 1
    http_status = 422

    def __init__(self, what: object, *, rule: str, got: object, fix: str) -> None:
        self.what = str(what)
        self.rule = rule
        self.got = str(got).removesuffix(".")
        self.fix = fix.rstrip(".")
        stop = "" if self.fix.endswith("?") else "."
        super().__init__(f"{self.what} must {self.rule}, but received {self.got}. {self.fix}{stop}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.rule, self.got, self.fix)


def _rebuild(kind: type[KerasVAEError], what: str, rule: str, got: str, fix: str) -> KerasVAEError:
    """Recreate an error in another process (keyword arguments do not survive pickling by default)."""
    return kind(what, rule=rule, got=got, fix=fix)


class ArgumentError(KerasVAEError, ValueError):
    """An argument of a function or a command is outside its rule."""

    exit_code = 2
    http_status = 400


class VolumeError(KerasVAEError):
    """An image cannot be read, or its content cannot be a brain image."""


class AlignmentError(VolumeError):
    """An image does not meet the alignment contract of a pipeline (space, registration, skull-stripping)."""


class CohortError(KerasVAEError):
    """A folder or table does not describe a usable cohort."""


class SplitError(CohortError):
    """A division of people into roles is impossible or not disjoint."""


class RecipeError(KerasVAEError):
    """A recipe has an unknown key or a value outside its rule."""

    exit_code = 2
    http_status = 400


class ModelError(KerasVAEError):
    """Networks, distributions and data of a model do not fit together."""


class TrainingError(KerasVAEError):
    """Training cannot go on."""


class NonFiniteError(TrainingError):
    """A loss term became NaN or infinite; the step was skipped and training stopped."""


class CollapseWarning(UserWarning):
    """A model in training has an ailment that its loss curve does not show; see `kerasvae.CollapseGuard`."""


class RunError(KerasVAEError):
    """A run folder is missing, incomplete or was made by another recipe."""


class BundleError(KerasVAEError):
    """A bundle is incomplete, altered or of an unknown schema."""

    http_status = 500


class ServingError(KerasVAEError):
    """A server cannot answer a request now, or not to this caller."""

    http_status = 503


class AnswerError(ServingError):
    """What a server answered in the place of what was asked for.

    Args:
        status: Its HTTP status, or what its gRPC status is in HTTP.
        sentence: Its own words.
    """

    def __init__(self, status: int, sentence: str) -> None:
        Exception.__init__(self, sentence)
        self.http_status, self.sentence = status, sentence
        self.exit_code = 2 if status == 400 else 1

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.http_status, self.sentence)


class UnauthorizedError(ServingError):
    """A request without a key that the server knows."""

    http_status = 401


class UnknownModelError(ServingError):
    """A server has no such model, or not in this version."""

    http_status = 404


class SlowRequestError(ServingError):
    """A request did not arrive in time."""

    http_status = 408


class ConflictError(ServingError):
    """What is asked for does not go with how things stand."""

    http_status = 409


class TooLargeError(ServingError):
    """A request has more bytes than a server takes."""

    http_status = 413


class MediaTypeError(ServingError):
    """A body is of a kind that an endpoint does not take."""

    http_status = 415


class OverloadedError(ServingError):
    """A server has as much to do as it accepts."""

    http_status = 429


class DeadlineError(ServingError):
    """An answer was not ready in time."""

    http_status = 504


class UnsupportedError(BundleError):
    """A bundle lacks what an answer needs: a pipeline, reference people, maps of them."""

    http_status = 501


class StorageError(KerasVAEError):
    """A result could not be written; what stood there before is untouched."""

    http_status = 507


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest in spelling to `name`, or None when nothing is close.

    >>> nearest("latent_sise", ["latent_size", "epochs"])
    'latent_size'
    """
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None
