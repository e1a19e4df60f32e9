"""The alignment contract: on drawn brains everywhere, and on real ones where they are present."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from kerasvae.errors import AlignmentError, ArgumentError, VolumeError
from kerasvae.preprocess import AlignmentContract, fit_contract, fit_mask, named_grid, read_volume, resample
from kerasvae.preprocess.signature import Signature, signal
from kerasvae.types import Grid, Volume

GRID = named_grid("mni-8mm")
CENTRE = np.array([0.0, -18.0, 8.0])
ROOT = Path(os.environ.get("KERASVAE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
real = pytest.mark.skipif(not (ROOT / "ixi").is_dir(), reason="the IXI images are not at KERASVAE_DATA")


def _moved(degrees=(0.0, 0.0, 0.0), shift=(0.0, 0.0, 0.0), scale=(1.0, 1.0, 1.0)) -> np.ndarray:
    """Turn, scale and shift about the middle of the head: mm to mm."""
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(scale)
    move[:3, 3] = CENTRE - move[:3, :3] @ CENTRE + np.array(shift)
    return move


def _drawn(seed: int, move: np.ndarray | None = None) -> np.ndarray:
    """A brain of ellipsoids, longer than wide, fuller behind, with a bulge on its left and dark ventricles."""
    random = np.random.default_rng(seed)
    jitter = _moved(random.normal(0, 1.5, 3), random.normal(0, 1.0, 3), 1 + random.normal(0, 0.02, 3))
    back = np.linalg.inv((np.eye(4) if move is None else move) @ jitter)
    index = np.indices(GRID.shape).reshape(3, -1)
    mm = GRID.matrix[:3, :3] @ index + GRID.matrix[:3, 3:]
    x, y, z = (back[:3, :3] @ mm + back[:3, 3:]) - CENTRE[:, None]

    def inside(cx, cy, cz, rx, ry, rz):
        reach = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2
        return 1 / (1 + np.exp(np.minimum(8 * (reach - 1), 50)))

    head = np.maximum(inside(0, 0, 0, 62, 78, 54), inside(-18, -60, -30, 42, 34, 30))
    white = inside(0, 5, 5, 40, 55, 32)
    dark = np.maximum(inside(12, 0, 5, 8, 28, 10), inside(-12, 0, 5, 8, 28, 10))
    image = head * (100 + 60 * white - 110 * dark).clip(0)
    return image.reshape(GRID.shape).astype(np.float32)


@cache
def _contract() -> tuple[AlignmentContract, np.ndarray]:
    people = [_drawn(seed) for seed in range(40)]
    mask = fit_mask(people, "signal")
    return fit_contract(people, mask, GRID, modality="drawn"), mask


def test_new_people_pass_and_are_measured():
    contract, mask = _contract()
    for seed in range(100, 140):
        measured = contract.check(_drawn(seed), mask, GRID)
        assert set(measured) == {"coverage", "outside", "correlation", "distance_mm", "handedness"}
        assert measured["correlation"] > 0.95


@pytest.mark.parametrize(
    ("move", "words"),
    [
        # the person's own place varies by 1 mm (standard deviation) on top of the shift
        (_moved(shift=(20, 0, 0)), r"shifted by \((1[7-9]|2[0-3]), "),
        (_moved(shift=(0, 0, -25)), "shifted by"),
        (_moved((25, 0, 0)), "unregistered"),
        (_moved((0, 0, 25)), "unregistered"),
        (_moved(scale=(0.8, 0.8, 0.8)), "smaller"),
        (_moved(scale=(1.25, 1.25, 1.25)), "not skull-stripped, or larger"),
        (_moved(scale=(1, -1, 1)), "flipped front to back"),
        (_moved(scale=(1, 1, -1)), "upside down"),
        (_moved(scale=(-1, 1, 1)), "mirrored left to right"),
    ],
    ids=["right", "down", "nodded", "turned", "small", "large", "flip y", "flip z", "flip x"],
)
def test_misplaced_people_are_refused_in_words(move, words):
    contract, mask = _contract()
    for seed in range(100, 110):
        with pytest.raises(AlignmentError, match=words) as caught:
            contract.check(_drawn(seed, move), mask, GRID, source="sub-01.nii.gz")
        assert str(caught.value).startswith("sub-01.nii.gz must lie as the training images do (skull-stripped drawn")


def test_a_skull_is_refused():
    contract, mask = _contract()
    for seed in range(100, 110):
        brain = _drawn(seed)
        inside = signal(brain)
        head = np.where(binary_dilation(inside, iterations=2) & ~inside, 120, brain).astype(np.float32)
        with pytest.raises(AlignmentError, match="not skull-stripped"):
            contract.check(head, mask, GRID)


def test_gain_does_not_matter():
    contract, mask = _contract()
    plain, louder = (contract.check(_drawn(100) * gain, mask, GRID) for gain in (np.float32(1), np.float32(40)))
    assert plain == pytest.approx(louder, rel=1e-4)


def test_sform_code_is_checked_only_when_asked_for():
    contract, mask = _contract()
    contract.check(_drawn(100), mask, GRID, sform_code=1)
    strict = contract.model_copy(update={"sform_codes": (4,)})
    strict.check(_drawn(100), mask, GRID, sform_code=4)
    strict.check(_drawn(100), mask, GRID, sform_code=None)
    with pytest.raises(AlignmentError, match="sform code 1 where 4 is accepted"):
        strict.check(_drawn(100), mask, GRID, sform_code=1)


def test_without_a_mask_three_numbers_are_left():
    people = [_drawn(seed) for seed in range(5)]
    contract = fit_contract(people, None, GRID)
    assert contract.limits.coverage is None
    assert contract.limits.handedness is None  # five people are too few to tell
    assert set(contract.check(_drawn(9), None, GRID)) == {"correlation", "distance_mm", "handedness"}


def test_nothing_on_the_grid():
    contract, mask = _contract()
    with pytest.raises(AlignmentError, match="signal on the model's grid"):
        contract.check(np.zeros(GRID.shape, np.float32), mask, GRID)


def test_survives_json_exactly():
    contract, mask = _contract()
    again = AlignmentContract.model_validate_json(contract.model_dump_json())
    assert again == contract
    assert again.check(_drawn(100), mask, GRID) == contract.check(_drawn(100), mask, GRID)


def test_centre_is_that_of_the_intensities():
    data = np.zeros((30, 50, 31), np.float32)
    data[7, 30, 11], data[9, 33, 12] = 1.0, 3.0
    grid = Grid.of(data.shape, np.diag([2.0, 3, 4, 1]), "g")
    # blocks of 2 voxels: the centre is that of the blocks, within half a block of the voxels'
    found = Signature.of(data, None, grid).centre_mm
    np.testing.assert_allclose(found, [2 * 8.5, 3 * 32.25, 4 * 11.75], atol=4)


@pytest.mark.parametrize("people", [0, 1])
def test_too_few_people(people):
    with pytest.raises(ArgumentError, match="two images or more"):
        fit_contract([_drawn(0)] * people, None, GRID)


def test_mask_rules():
    people = [np.zeros((3, 3, 3), np.float32) for _ in range(4)]
    for i, data in enumerate(people):
        data[0, 0, 0] = 1.0
        data[1, 1, 1] = 1.0 if i < 2 else 0.0
        data[2, 2, 2] = 1.0 if i < 1 else 0.0
    assert np.argwhere(fit_mask(people, "signal")).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert fit_mask(people, {"kind": "signal", "threshold": 0.2}).sum() == 3
    assert np.argwhere(fit_mask(people, {"kind": "mean", "threshold": 0.6})).tolist() == [[0, 0, 0]]
    with pytest.raises(VolumeError, match="at least one voxel"):
        fit_mask(people, {"kind": "mean", "threshold": 5})
    with pytest.raises(VolumeError, match="at least one image"):
        fit_mask([], "signal")
    for wrong in ("signl", {"kind": "mean", "threshold": -1}, {"kind": "mean", "thresold": 1}):
        with pytest.raises(ArgumentError, match="mask rule"):
            fit_mask(people, wrong)


def test_signal_mask_has_no_holes():
    shell = np.ones((7, 7, 7), np.float32)
    shell[2:5, 2:5, 2:5] = 0.0
    assert fit_mask([shell], "signal").all()


# ---------------------------------------------------------------- real brains

MNI = named_grid("mni-4mm")


@cache
def _ixi() -> tuple[list[Volume], list[Volume]]:
    """Images of people whose quality check passed, and of the two whose did not."""
    rows = [line.split("\t") for line in (ROOT / "ixi" / "participants.tsv").read_text().splitlines()]
    column = rows[0].index("qc")
    good, failed = [], []
    for row in rows[1:]:
        path = ROOT / "ixi" / row[0] / "anat" / f"{row[0]}_space-MNIaffine_desc-brain_T1w.nii.gz"
        (good if row[column] == "pass" else failed).append(read_volume(path))
    return good, failed


@cache
def _ixi_contract() -> tuple[AlignmentContract, np.ndarray]:
    people = [resample(v.data, v.affine, MNI) for v in _ixi()[0][:100]]
    mask = fit_mask(people, "signal")
    return fit_contract(people, mask, MNI), mask


def _refused(images) -> float:
    contract, mask = _ixi_contract()
    refused = []
    for data in images:
        try:
            contract.check(data, mask, MNI)
        except AlignmentError:
            refused.append(True)
        else:
            refused.append(False)
    return float(np.mean(refused))


@real
def test_all_139_people_pass_the_39_unseen_among_them():
    good, _ = _ixi()
    assert len(good) == 139
    assert _refused(resample(v.data, v.affine, MNI) for v in good) == 0.0


@real
def test_both_failed_registrations_are_refused():
    assert _refused(resample(v.data, v.affine, MNI) for v in _ixi()[1]) == 1.0


def _centred(volume: Volume, turn: np.ndarray) -> np.ndarray:
    """A scanner-like affine: 2 mm voxels, the middle of the array at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.0, 2.0, 2.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(volume.data.shape) - 1) / 2)
    return affine


@real
def test_native_scans_are_refused():
    people = _ixi()[0][::2]
    assert _refused(resample(v.data, _centred(v, np.eye(3)), MNI) for v in people) >= 0.99
    turned = Rotation.from_euler("xyz", (-15, 3, 2), degrees=True).as_matrix()
    assert _refused(resample(v.data, _centred(v, turned), MNI) for v in people) >= 0.95


AXES = dict(zip("xyz", np.eye(3), strict=True))
MOVES = {
    **{
        f"turned {degrees}° about {name}": _moved(degrees * axis)
        for name, axis in AXES.items()
        for degrees in (-15, 20)
    },
    **{f"20 mm along {name}": _moved(shift=20 * axis) for name, axis in AXES.items()},
    **{f"mirrored along {name}": _moved(scale=1 - 2 * axis) for name, axis in AXES.items()},
    "a tenth smaller": _moved(scale=(0.9, 0.9, 0.9)),
}


@real
@pytest.mark.parametrize("name", MOVES)
def test_moved_people_are_refused(name):
    unseen = _ixi()[0][100::2]
    assert _refused(resample(v.data, MOVES[name] @ v.affine, MNI) for v in unseen) >= 0.95


@real
def test_heads_with_a_skull_are_refused():
    def heads():
        for v in _ixi()[0][100:]:
            brain = v.data > 0
            gap = binary_dilation(brain, iterations=2)
            skull = binary_dilation(gap, iterations=1) & ~gap
            yield resample(np.where(skull, 128, v.data).astype(np.float32), v.affine, MNI)

    assert _refused(heads()) == 1.0
