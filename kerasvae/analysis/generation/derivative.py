"""Folders of made images, laid out as BIDS derivatives that say that nobody was scanned."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kerasvae.errors import ArgumentError
from kerasvae.storage import atomic_path, is_vacant
from kerasvae.training.run import Run, write_json

__all__ = ["describe_images", "image_path", "label_of", "new_derivative"]

DESCRIPTION = "dataset_description.json"


@contextmanager
def new_derivative(out: Path, *, name: str, command: str, settings: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to fill, which stands at `out` when the block ends without an error.

    Args:
        out: New or empty.
        name: Of the dataset.
        command: What makes it.
        settings: Of the command, kept in dataset_description.json.

    Raises:
        ArgumentError: If the folder holds something.
        StorageError: If it cannot be written.
    """
    if not is_vacant(out):
        raise ArgumentError("--out", rule="be a new or empty folder", got=f"{out} with files", fix="Choose another")
    version = importlib.metadata.version("kerasvae")
    told = ", ".join(f"{key}: {value}" for key, value in settings.items())
    with atomic_path(out, seal=DESCRIPTION) as folder:
        folder.mkdir()
        yield folder
        content = {
            "Name": name,
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": f"kerasvae {command}", "Version": version, "Description": told}],
        }
        write_json(folder / DESCRIPTION, content)


def image_path(folder: Path, run: Run, name: str, **entities: str) -> Path:
    """Where an image of somebody belongs: sub-x[/ses-y]/anat/sub-x[_ses-y][_space-…]_desc-…_suffix.nii.gz.

    Args:
        folder: The derivative.
        run: Its recipe says the suffix.
        name: Of the person, perhaps with a session: sub-x or sub-x_ses-y.
        entities: In their order.
    """
    return folder.joinpath(*name.split("_"), "anat", f"{name}_{_ending(run, entities)}.nii.gz")


def describe_images(folder: Path, run: Run, about: Mapping[str, Any], **entities: str) -> None:
    """Write a sidecar at the top of a derivative: it holds for all its images with these entities (BIDS inheritance).

    Args:
        folder: The derivative.
        run: Its recipe says the suffix.
        about: What it says.
        entities: Those that the images have in common.
    """
    write_json(folder / f"{_ending(run, entities)}.json", about)


def _ending(run: Run, entities: Mapping[str, str]) -> str:
    suffix = run.recipe.cohort.select.get("suffix", run.pipeline.modality)
    return "_".join([*(f"{key}-{value}" for key, value in entities.items()), suffix])


def label_of(values: Mapping[str, str]) -> str:
    """Values as a BIDS label, which is letters and digits alone.

    >>> label_of({"age": "72.5", "sex": "F"})
    'age72p5sexF'
    """
    text = "".join(f"{name}{value}" for name, value in values.items())
    return re.sub(r"[^A-Za-z0-9]", "", text.replace("-", "m").replace(".", "p"))
