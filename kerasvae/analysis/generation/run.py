"""New people of given values, as images, and whether they are new."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kerasvae.analysis.design import column_of
from kerasvae.analysis.generation.derivative import describe_images, image_path, new_derivative
from kerasvae.analysis.generation.generator import Generator
from kerasvae.analysis.generation.memorisation import LEAST_HELD_OUT
from kerasvae.analysis.generation.novelty import CODES, Check, novelty
from kerasvae.errors import ArgumentError
from kerasvae.preprocess.nifti import write_volume
from kerasvae.training.run import Run, write_described, write_json

__all__ = ["Generated", "generate_run"]


@dataclass(frozen=True)
class Generated:
    """What `generate_run` wrote.

    Args:
        path: The folder.
        people: How many.
        warnings: Sentences.
        check: None where too few people were held out.
    """

    path: Path
    people: int
    warnings: list[str]
    check: Check | None


def generate_run(
    run: Run,
    values: Mapping[str, str],
    out: Path,
    *,
    count: int,
    noise: bool = False,
    seed: int = 0,
    knots: int = 2,
    command: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Generated:
    """Write images of new people: a BIDS derivative with participants.tsv, codes.tsv and memorisation.json.

    Codes are drawn from what is learned of training and validation people: z | c ~ N(B d(c), S). Images are on the
    model's grid, in model units, NIfTI, 0 outside the mask.

    Args:
        run: Finished.
        values: Column of the cohort to value, e.g. ``{"age": "70", "sex": "F"}``; none: anybody.
        out: A new folder.
        count: How many people.
        noise: Draw images from the likelihood; else they are its means, which lack what codes do not say.
        seed: Of the draws.
        knots: See `ConditionalCodes.fit`.
        command: That is asked for, for the images' sidecar.
        progress: Told how many images are written.

    Raises:
        ArgumentError: If a column or a value is unknown, people are too few, or the folder holds something.
        ModelError: If codes are not points of Euclidean space.
        RunError: If the run is not finished.
    """
    from kerasvae.models.samplers.base import seeds_of

    if count < 1:
        raise ArgumentError("--count", rule="be 1 or more", got=count, fix="Correct it")
    settings = {"run": run.path.name, "set": dict(values), "count": count, "noise": noise, "seed": seed, "knots": knots}
    with new_derivative(
        out, name="Generated brains: no person was scanned", command="generate", settings=settings
    ) as folder:
        generator = Generator.of(run, list(values), knots=knots)
        values = {column_of(name)[0]: value for name, value in values.items()}
        table = {name: [value] for name, value in values.items()}
        rows = generator.numbers(table)
        warnings = generator.warnings(table)
        for_codes, for_check, for_noise = seeds_of(seed)
        codes = generator.given.sample(rows, count, for_codes)[:, 0]
        means = generator.decode(codes, table)
        images = generator.decode(codes, table, for_noise) if noise else means
        people = [f"sub-generated{index + 1:0{max(3, len(str(count)))}d}" for index in range(count)]
        grid = run.pipeline.grid
        for index, (person, image) in enumerate(zip(people, images, strict=True)):
            path = image_path(folder, run, person, desc="generated")
            write_volume(path, image, grid.matrix, space=grid.space)
            progress(index + 1, count)
        drawn = "drawn with the model's noise" if noise else "a mean, without noise"
        about = {"Description": f"a brain made by a model, {drawn}; nobody was scanned", "Unit": "model units"}
        describe_images(folder, run, about | {"Space": grid.space, "Command": command}, desc="generated")
        columns = {"participant_id": CODES["participant_id"], **dict.fromkeys(values, "as it was asked for")}
        write_described(folder / "participants.tsv", [{"participant_id": each, **values} for each in people], columns)
        found, near = novelty(generator, codes, means, seed=for_check)
        if found is None:
            warnings.append(
                f"Fewer than {LEAST_HELD_OUT} people were held out with all values known: whether the run draws its "
                "training people again was not tested."
            )
        table_of = [
            {"participant_id": person, **near[index], **{f"code_{i}": float(z) for i, z in enumerate(code)}}
            for index, (person, code) in enumerate(zip(people, codes, strict=True))
        ]
        dimensions = {f"code_{i}": f"code, dimension {i}" for i in range(codes.shape[1])}
        write_described(folder / "codes.tsv", table_of, CODES | dimensions)
        write_json(folder / "memorisation.json", None if found is None else found.as_json())
    return Generated(out, count, warnings, found)
