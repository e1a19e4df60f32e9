"""atomic_path: files and folders, success and every kind of failure."""

from __future__ import annotations

import os
import shutil

import pytest

from kerasvae.errors import StorageError
from kerasvae.storage import atomic_path, recover


def test_file_appears_only_at_the_end(tmp_path):
    final = tmp_path / "new" / "model.keras"
    with atomic_path(final) as temporary:
        temporary.write_text("weights")
        assert temporary.suffix == ".keras"
        assert temporary.parent == final.parent
        assert not final.exists()
    assert final.read_text() == "weights"
    assert list(final.parent.iterdir()) == [final]


def test_file_replaces_file(tmp_path):
    final = tmp_path / "a.txt"
    final.write_text("old")
    with atomic_path(final) as temporary:
        temporary.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"


def test_folder_replaces_folder(tmp_path):
    final = tmp_path / "bundle"
    final.mkdir()
    (final / "old").write_text("old")
    with atomic_path(final) as temporary:
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "new").write_text("new")
    assert [p.name for p in final.rglob("*")] == ["sub", "new"]
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("folder", [False, True])
def test_error_in_the_block_leaves_everything_as_before(tmp_path, folder):
    final = tmp_path / "a"
    final.write_text("old")

    def fail():
        with atomic_path(final) as temporary:
            if folder:
                temporary.mkdir()
                (temporary / "part").write_text("half")
            else:
                temporary.write_text("half")
            raise KeyError("work")

    with pytest.raises(KeyError, match="work"):
        fail()
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_full_disk_at_flush_is_a_storage_error(tmp_path, monkeypatch):
    final = tmp_path / "a"
    final.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    def write():
        with atomic_path(final) as temporary:
            temporary.write_text("new")

    with pytest.raises(StorageError, match="No space left on device") as caught:
        write()
    assert caught.value.http_status == 507
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_failed_rename_of_a_folder_restores_the_old_one(tmp_path, monkeypatch):
    final = tmp_path / "bundle"
    final.mkdir()
    (final / "old").write_text("old")
    real = type(final).replace

    def replace(self, target):
        if self.name.endswith("-bundle") and "old" not in self.name and target == final:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(type(final), "replace", replace)

    def write():
        with atomic_path(final) as temporary:
            temporary.mkdir()

    with pytest.raises(StorageError, match="Input/output"):
        write()
    monkeypatch.undo()
    assert (final / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_nothing_written_and_impossible_parent(tmp_path):
    def nothing():
        with atomic_path(tmp_path / "a"):
            pass

    with pytest.raises(StorageError):
        nothing()
    (tmp_path / "file").write_text("")

    def below_a_file():
        with atomic_path(tmp_path / "file" / "a") as temporary:
            temporary.write_text("x")

    with pytest.raises(StorageError):
        below_a_file()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(shutil.which("sh") is None or os.name != "posix", reason="needs file size limits")
def test_real_limit_on_file_size(tmp_path):
    import resource
    import subprocess
    import sys

    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from kerasvae.storage import atomic_path\n"
        "from kerasvae.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with atomic_path(Path(sys.argv[1]) / 'big') as temporary:\n"
        "        temporary.write_bytes(bytes(5000))\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    assert resource.RLIMIT_FSIZE >= 0
    (tmp_path / "big").write_text("old")
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "too large" in out.stdout
    assert (tmp_path / "big").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_is_filled_in_place_and_sealed_last(tmp_path, monkeypatch):
    # it may be a mount point, or the folder one stands in
    monkeypatch.chdir(tmp_path)
    here = tmp_path.stat().st_ino
    with atomic_path(".", seal="a.json") as folder:
        folder.mkdir()
        for name in ("a.json", "b.txt"):
            (folder / name).write_text(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.txt"]
    assert tmp_path.stat().st_ino == here


def test_interrupted_between_two_renames_the_old_folder_comes_back(tmp_path, monkeypatch):
    final = tmp_path / "checkpoint"
    final.mkdir()
    (final / "state").write_text("old")
    replace = type(tmp_path).replace

    def stop_at_the_second(self, target):
        if "-old-" not in str(target) and "-old-" not in str(self):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt), atomic_path(final) as folder:
        folder.mkdir()
    monkeypatch.undo()
    assert (final / "state").read_text() == "old"
    # killed outright, the old one lies aside until it is asked for
    final.rename(tmp_path / ".0123456789ab-old-checkpoint")
    recover(final)
    assert (final / "state").read_text() == "old"
    recover(final)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
