"""The store of preprocessed volumes: what is kept, found again, made again and refused."""

import shutil

import numpy as np
import pytest

from kerasvae.data import Cohort, Scan
from kerasvae.data.store import VolumeStore
from kerasvae.errors import StorageError, VolumeError
from kerasvae.preprocess import Pipeline
from kerasvae.types import Grid
from tests.conftest import blob, blob_affine, write_image

GRID = Grid.of((16, 18, 15), blob_affine(), "native")


def pipeline(high=200.0):
    return Pipeline(grid=GRID, intensity={"kind": "range", "low": 0, "high": high, "clip": False})


@pytest.fixture
def scan(tmp_path):
    path = write_image(tmp_path / "data" / "sub-1_T1w.nii.gz", blob(1), blob_affine())
    return Scan("sub-1", "ses-1", path)


@pytest.fixture
def store(tmp_path):
    return VolumeStore(tmp_path / "cache", pipeline())


def files(store):
    return sorted(store.folder.iterdir())


def test_a_volume_is_made_once_and_anew_when_image_or_pipeline_change(store, scan):
    expected = (blob(1) / 200).astype(np.float32)
    np.testing.assert_allclose(store.volume(scan), expected, rtol=1e-5, atol=1e-5)
    (path,) = files(store)
    assert path.name.startswith("sub-1_ses-1-")
    np.save(path, np.full(GRID.shape, 7, np.float32))
    assert (store.volume(scan) == 7).all()
    np.testing.assert_allclose(
        VolumeStore(store.folder, pipeline(100.0)).volume(scan), 2 * expected, rtol=1e-5, atol=1e-5
    )
    write_image(scan.path, 2 * blob(1), blob_affine())
    np.testing.assert_allclose(store.volume(scan), 2 * expected, rtol=1e-5, atol=1e-5)
    assert len(files(store)) == 3


def test_one_image_has_one_file_however_it_is_named(store, scan, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    names = ["data/sub-1_T1w.nii.gz", "link/sub-1_T1w.nii.gz", "link/../data/sub-1_T1w.nii.gz", scan.path]
    assert len({store.path(Scan("sub-1", "ses-1", type(scan.path)(name))) for name in names}) == 1


@pytest.mark.parametrize("name", ["sub-1/../../..", "/sub-1", "sub-[1]*", ".sub", "é" * 300])
def test_no_name_leads_out_of_the_folder(store, scan, name):
    volume = store.volume(Scan(name, "", scan.path))
    scan.path.unlink()
    np.testing.assert_array_equal(store.volume(Scan(name, "", scan.path)), volume)
    (path,) = files(store)
    assert path.is_file()
    assert not path.name.startswith(".")


def test_images_that_are_gone_are_named_and_may_be_skipped(store, scan, tmp_path):
    link = tmp_path / "sub-2_T1w.nii.gz"
    link.symlink_to(tmp_path / "nowhere")
    gone, broken = Scan("sub-0", "", tmp_path / "data" / "moved.nii.gz"), Scan("sub-2", "", link)
    for bad in (gone, broken):
        with pytest.raises(VolumeError, match=rf"The image {bad.path} of {bad.name} must be readable.*no such file"):
            store.volume(bad)
    cohort, sentences = store.prepare(Cohort((gone, scan, broken), tmp_path), skip_bad=True)
    assert cohort.scans == (scan,)
    assert sorted(sentences) == ["sub-0", "sub-2"]
    assert [reason for _, reason in cohort.excluded] == [sentences["sub-0"], sentences["sub-2"]]
    with pytest.raises(VolumeError, match="moved"):
        store.prepare(Cohort((gone, scan), tmp_path))


def test_what_was_made_outlives_the_image(store, scan, tmp_path):
    volume = store.volume(scan)
    store.volume(Scan("sub-1", "", scan.path))  # another visit of the same person is another file
    VolumeStore(store.folder, pipeline(100.0)).volume(scan)
    (store.folder / f".0123-{store.path(scan).name}").write_bytes(b"left by a machine that stopped")
    shutil.move(tmp_path / "data", tmp_path / "moved")
    np.testing.assert_array_equal(store.volume(scan), volume)
    assert store.prepare(Cohort((scan,), tmp_path))[1] == {}
    with pytest.raises(VolumeError, match="must be readable"):
        VolumeStore(store.folder, pipeline(50.0)).volume(scan)


def test_of_two_versions_of_a_lost_image_none_is_guessed(store, scan):
    store.volume(scan)
    write_image(scan.path, 2 * blob(1), blob_affine())
    store.volume(scan)
    scan.path.unlink()
    with pytest.raises(VolumeError, match=str(scan.path)):
        store.volume(scan)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "archive", "header", "shape"])
def test_damaged_files_are_made_again_or_refused(store, scan, damage):
    volume = store.volume(scan)
    (path,) = files(store)
    whole = path.read_bytes()
    content = {
        "empty": b"",
        "cut": whole[:-9],
        "text": b"not an array",
        "archive": b"PK\3\4" + whole[4:],
        "header": whole.replace(b"'descr'", b"'de(cr '"),
    }
    if damage == "shape":
        np.save(path, volume[:4])
    else:
        path.write_bytes(content[damage])
    np.testing.assert_array_equal(store.volume(scan), volume)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-9])
    scan.path.unlink()
    with pytest.raises(VolumeError, match=str(scan.path)):
        store.volume(scan)


def test_a_store_that_cannot_be_written_is_no_fault_of_the_images(scan, tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = VolumeStore(tmp_path / "file", pipeline())
    with pytest.raises(StorageError):
        store.prepare(Cohort((scan,), tmp_path), skip_bad=True)
