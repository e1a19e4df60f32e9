"""Encoding a cohort: in parts, on from any end, each image once."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kerasvae.errors import AlignmentError, AnswerError, ArgumentError, CohortError, StorageError, VolumeError
from kerasvae_serving import Client, Engine, encode_files, gather
from kerasvae_serving.engine import Engine as Base
from tests.conftest import blob, blob_affine, write_image
from tests.serving.servers import Running
from tests.serving.test_operations import renamed

PEOPLE = 17
FIRST = 200


class Counting(Base):
    """An engine that counts the images that it encodes."""

    count = 0
    other: dict[str, str] = {}  # noqa: RUF012

    def encode(self, *given, **named):
        self.count += 1
        return super().encode(*given, **named)

    @property
    def identity(self):
        return super().identity | self.other


@pytest.fixture
def counting(bundles) -> Counting:
    return Counting(bundles / "blobs-1", check=False)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "scans"
    for person in range(PEOPLE):
        write_image(folder / f"sub-{person:02d}_T1w.nii.gz", blob(FIRST + person), blob_affine())
    return folder


@pytest.fixture(scope="module")
def whole(engine, scans, tmp_path_factory) -> bytes:
    """The table of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "latents.tsv"
    assert encode_files(engine, [scans], out) == {}
    assert [path.name for path in out.parent.iterdir()] == ["latents.tsv"]
    return out.read_bytes()


def part(out: Path, index: int = 0, count: int = 1) -> Path:
    return Path(f"{out}.parts") / f"{index}-of-{count}.jsonl"


def images_in(path: Path) -> list[int]:
    """Which images a part has, read without the code that wrote it."""
    return [line["index"] for _, line in map(json.loads, path.read_text().splitlines()) if "index" in line]


def interrupt(source, inputs, out, after: int, **named) -> None:
    """A run that ends after some images."""

    def stop(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_files(source, inputs, out, progress=stop, **named)


def test_the_table_has_a_row_for_each_image_in_order(engine, scans, whole):
    rows = list(csv.DictReader(whole.decode().splitlines(), delimiter="\t"))
    files = sorted(scans.iterdir())
    assert [row["file"] for row in rows] == [str(path) for path in files]
    assert [row["participant_id"] for row in rows] == [f"sub-{person:02d}" for person in range(PEOPLE)]
    for row, path in zip(rows, files, strict=True):
        for name, values in engine.encode(path).items():
            found = [float(row[f"{name}_{d}"]) for d in range(values.shape[1])]
            np.testing.assert_array_equal(np.float32(found), values[0])


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 20])
def test_parts_are_even_and_make_the_table_of_one_run(engine, scans, whole, tmp_path, count):
    out = tmp_path / "latents.tsv"
    files = sorted(scans.iterdir())
    for index in reversed(range(count)):
        # on another machine a shell's pattern may come in another order
        given = [scans] if index % 2 else np.random.default_rng(index).permutation(files).tolist()
        assert encode_files(engine, given, out, shard=(index, count)) == {}
        assert not out.exists()
    parts = [images_in(part(out, index, count)) for index in range(count)]
    assert sorted(index for each in parts for index in each) == list(range(PEOPLE))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert gather(out) == {}
    assert out.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [out]


def test_tables_with_commas(engine, scans, whole, tmp_path):
    out = tmp_path / "latents.csv"
    for index in range(2):
        encode_files(engine, [scans], out, shard=(index, 2))
    gather(out)
    assert out.read_bytes() == whole.replace(b"\t", b",")


def test_a_run_goes_on_where_it_was_interrupted(counting, scans, whole, tmp_path):
    out = tmp_path / "latents.tsv"
    out.write_text("of an earlier run")
    interrupt(counting, [scans], out, 6)
    assert images_in(part(out)) == list(range(6))
    assert out.read_text() == "of an earlier run"
    counting.count = 0
    seen = []
    encode_files(counting, [scans], out, progress=lambda *numbers: seen.append(numbers))
    assert counting.count == PEOPLE - 6
    assert (seen[0], seen[-1]) == ((7, PEOPLE), (PEOPLE, PEOPLE))
    assert out.read_bytes() == whole
    assert not part(out).parent.exists()


def test_a_run_goes_on_from_a_journal_cut_anywhere(counting, scans, whole, tmp_path):
    out = tmp_path / "latents.tsv"
    interrupt(counting, [scans], out, PEOPLE - 1)
    full = part(out).read_bytes()
    rng = np.random.default_rng(0)
    for size in [0, 1, len(full) - 1, *rng.integers(2, len(full) - 1, 30)]:
        part(out).parent.mkdir(exist_ok=True)
        part(out).write_bytes(full[:size])
        lines = full[:size].splitlines(keepends=True)
        # the first two lines are of no image, and the last counts if it is whole
        images = max(0, sum(line.endswith(b"\n") for line in lines) - 2)
        counting.count = 0
        encode_files(counting, [scans], out)
        assert counting.count == PEOPLE - images
        assert out.read_bytes() == whole, f"cut at {size}"


def test_a_torn_line_costs_nothing_of_what_follows(counting, scans, whole, tmp_path):
    """Twice interrupted, the first time in the middle of a line; then begun anew and interrupted again."""
    out = tmp_path / "latents.tsv"
    interrupt(counting, [scans], out, 5)
    part(out).write_bytes(part(out).read_bytes()[:-20])
    interrupt(counting, [scans], out, 9)
    assert images_in(part(out)) == list(range(9))
    counting.other = {"precision": "int8"}
    interrupt(counting, [scans], out, 2, restart=True)
    assert images_in(part(out)) == [0, 1]
    counting.other, counting.count = {}, 0
    encode_files(counting, [scans], out, restart=True)
    assert counting.count == PEOPLE
    assert out.read_bytes() == whole


@pytest.mark.parametrize("spoil", [lambda old: old ^ 1, lambda old: 0], ids=["a bit", "zeros"])
def test_what_follows_a_damaged_line_is_done_again(counting, scans, whole, tmp_path, spoil):
    """A power failure may leave any bytes in what was not flushed."""
    out = tmp_path / "latents.tsv"
    interrupt(counting, [scans], out, PEOPLE - 1)
    full = part(out).read_bytes()
    ends = [place for place, byte in enumerate(full) if byte == ord("\n")]
    for place in np.random.default_rng(1).integers(ends[4], ends[8], 8):
        bad = bytearray(full)
        stop = place + 1 if spoil(3) else len(full)
        bad[place:stop] = bytes(spoil(byte) for byte in full[place:stop])
        part(out).parent.mkdir(exist_ok=True)
        part(out).write_bytes(bad)
        counting.count = 0
        encode_files(counting, [scans], out)
        assert counting.count == PEOPLE + 1 - sum(end < place for end in ends) + 1
        assert out.read_bytes() == whole


def test_a_changed_image_is_encoded_again(counting, engine, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "latents.tsv"
    files = [write_image(folder / f"sub-{k}.nii.gz", blob(FIRST + k), blob_affine()) for k in range(4)]
    interrupt(counting, [folder], out, 3)
    write_image(files[1], blob(FIRST + 50), blob_affine())
    os.utime(files[2], ns=(1, 1))  # as after a copy: nobody can know that it is the same
    counting.count = 0
    encode_files(counting, [folder], out)
    assert counting.count == 3
    encode_files(engine, [folder], tmp_path / "fresh.tsv")
    assert out.read_bytes() == (tmp_path / "fresh.tsv").read_bytes()


def test_images_left_out_are_remembered_and_named_once(counting, scans, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "latents.tsv"
    files = [write_image(folder / f"sub-{k}.nii.gz", blob(FIRST + k), blob_affine()) for k in range(6)]
    good = files[1].read_bytes()
    files[1].write_bytes(good[:300])
    write_image(files[2], np.roll(blob(FIRST + 2), 6, axis=1), blob_affine())
    interrupt(counting, [folder], out, 4, skip_bad=True)
    counting.count = 0
    with pytest.raises(VolumeError, match=r"sub-1\.nii\.gz"):
        encode_files(counting, [folder], out)
    left_out = encode_files(counting, [folder], out, skip_bad=True)
    assert list(left_out) == [str(files[1]), str(files[2])]
    assert counting.count == 2
    assert len(out.read_text().splitlines()) == 1 + 4

    interrupt(counting, [folder], out, 4, skip_bad=True)
    files[1].write_bytes(good)
    assert list(encode_files(counting, [folder], out, skip_bad=True)) == [str(files[2])]
    assert len(out.read_text().splitlines()) == 1 + 5


def test_an_error_on_the_way_keeps_what_was_done(counting, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "latents.tsv"
    files = [write_image(folder / f"sub-{k}.nii.gz", blob(FIRST + k), blob_affine()) for k in range(6)]
    write_image(files[3], np.roll(blob(FIRST + 3), 6, axis=1), blob_affine())
    with pytest.raises(AlignmentError):
        encode_files(counting, [folder], out)
    assert images_in(part(out)) == [0, 1, 2]
    write_image(files[3], blob(FIRST + 3), blob_affine())
    counting.count = 0
    encode_files(counting, [folder], out)
    assert counting.count == 3
    assert len(out.read_text().splitlines()) == 1 + 6


def test_where_nothing_was_done_nothing_is_left(engine, tmp_path):
    bad = tmp_path / "scans" / "a.nii"
    bad.parent.mkdir()
    bad.write_bytes(b"no image")
    with pytest.raises(VolumeError):
        encode_files(engine, [bad], tmp_path / "latents.tsv")
    assert list(tmp_path.iterdir()) == [bad.parent]
    with pytest.raises(VolumeError, match=r"none of 1; of the first: .*a\.nii"):
        encode_files(engine, [bad], tmp_path / "latents.tsv", skip_bad=True)
    encode_files(engine, [bad], tmp_path / "shards.tsv", skip_bad=True, shard=(0, 1))
    with pytest.raises(VolumeError, match="none of 1"):
        gather(tmp_path / "shards.tsv")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"precision": "int8"}, "another precision"),
        ({"digest": "0" * 64}, "other weights or preprocessing"),
        ({"software": "kerasvae 0.0.1"}, "other versions of kerasvae, ONNX Runtime, NumPy or SciPy"),
        ({"model": "blobs 2", "digest": "0" * 64}, "another model"),
    ],
)
def test_a_run_of_something_else_is_refused(counting, scans, whole, tmp_path, other, words):
    out = tmp_path / "latents.tsv"
    interrupt(counting, [scans], out, 3)
    before = part(out).read_bytes()
    counting.other = other
    with pytest.raises(ArgumentError, match=rf"{words}\. .* --restart\.$"):
        encode_files(counting, [scans], out)
    assert part(out).read_bytes() == before
    encode_files(counting, [scans], out, restart=True)
    assert out.read_bytes() == whole

    counting.other = {}
    encode_files(counting, [scans], out, shard=(0, 2))
    counting.other = other
    encode_files(counting, [scans], out, shard=(1, 2))
    with pytest.raises(ArgumentError, match=f"hold parts of one run, but received part 1 begun with {words}"):
        gather(out)
    assert out.read_bytes() == whole


def test_other_images_are_refused(engine, scans, tmp_path):
    out = tmp_path / "latents.tsv"
    interrupt(engine, [scans], out, 3)
    with pytest.raises(ArgumentError, match="another list of images"):
        encode_files(engine, sorted(scans.iterdir())[1:], out)
    for index, inputs in enumerate(([scans], sorted(scans.iterdir())[1:])):
        encode_files(engine, inputs, tmp_path / "parts.tsv", shard=(index, 2))
    with pytest.raises(ArgumentError, match="part 1 begun with another list of images"):
        gather(tmp_path / "parts.tsv")


def test_a_bundle_is_not_another(bundles, engine, tmp_path):
    """Two real ones: the digests of their manifests differ, and each stays the same."""
    aged = Engine(bundles / "aged-1")
    assert aged.identity["digest"] != engine.identity["digest"]
    assert Engine(bundles / "aged-1", check=False).identity == aged.identity


def test_another_division_is_refused(engine, scans, tmp_path):
    out = tmp_path / "latents.tsv"
    encode_files(engine, [scans], out, shard=(1, 3))
    for shard, into in (((0, 2), 2), (None, 1)):
        with pytest.raises(ArgumentError, match=f"one division, into {into}, but received some of a division into 3"):
            encode_files(engine, [scans], out, shard=shard)
    part(out, 0, 2).write_bytes(part(out, 1, 3).read_bytes())
    with pytest.raises(ArgumentError, match="one division"):
        gather(out)


@pytest.mark.parametrize("shard", [(-1, 2), (2, 2), (0, 0)])
def test_parts_are_counted_from_0(engine, scans, tmp_path, shard):
    with pytest.raises(ArgumentError, match="from 0 to n − 1"):
        encode_files(engine, [scans], tmp_path / "latents.tsv", shard=shard)


def test_gather_waits_for_every_part(engine, scans, whole, tmp_path):
    out = tmp_path / "latents.tsv"
    with pytest.raises(ArgumentError, match="but received none"):
        gather(out)
    for index in (0, 2):
        encode_files(engine, [scans], out, shard=(index, 4))
    interrupt(engine, [scans], out, 2, shard=(3, 4))
    with pytest.raises(CohortError, match=r"4 parts, each done, but received 2 that are .* \(1/4, 3/4\)"):
        gather(out)
    encode_files(engine, [scans], out, shard=(3, 4))
    # a copy is no other part
    part(out, 1, 4).write_bytes(part(out, 2, 4).read_bytes())
    with pytest.raises(ArgumentError, match="part 1 begun with another part"):
        gather(out)
    part(out, 1, 4).unlink()
    encode_files(engine, [scans], out, shard=(1, 4))
    gather(out)
    assert out.read_bytes() == whole


def test_two_at_one_part_are_refused(engine, scans, whole, tmp_path):
    out = tmp_path / "latents.tsv"
    refused = []

    def second(done: int, total: int) -> None:
        if done == 3:
            for call in (lambda: encode_files(engine, [scans], out, shard=(0, 1)), lambda: gather(out)):
                with pytest.raises((StorageError, CohortError), match="process is writing") as caught:
                    call()
                refused.append(caught)

    encode_files(engine, [scans], out, shard=(0, 1), progress=second)
    assert len(refused) == 2
    gather(out)
    assert out.read_bytes() == whole


def covariates(path: Path, ages: dict[int, int]) -> Path:
    path.write_text("participant_id\tage\tsex\n" + "".join(f"sub-{k:02d}\t{age}\tF\n" for k, age in ages.items()))
    return path


def test_covariates_that_change(bundles, scans, tmp_path):
    engine = Counting(bundles / "aged-1", check=False)
    out, ages = tmp_path / "latents.tsv", {person: 30 + person for person in range(PEOPLE)}
    table = covariates(tmp_path / "people.tsv", {k: age for k, age in ages.items() if k != 5})
    with pytest.raises(ArgumentError, match="one row for sub-05"):
        encode_files(engine, [scans], out, covariates=table)
    covariates(table, ages | {2: 71})
    engine.count = 0
    encode_files(engine, [scans], out, covariates=table)
    assert engine.count == PEOPLE - 5 + 1  # four of the five that were done stand
    fresh = tmp_path / "fresh.tsv"
    encode_files(engine, [scans], fresh, covariates=table)
    assert out.read_bytes() == fresh.read_bytes()

    encode_files(engine, [scans], out, covariates=table, shard=(0, 2))
    covariates(table, ages)
    encode_files(engine, [scans], out, covariates=table, shard=(1, 2))
    with pytest.raises(ArgumentError, match="part 1 begun with another table of covariates"):
        gather(out)
    engine.count = 0
    encode_files(engine, [scans], out, covariates=table, shard=(0, 2))
    assert engine.count == 1
    gather(out)
    encode_files(engine, [scans], fresh, covariates=table)
    assert out.read_bytes() == fresh.read_bytes()


def test_what_changed_is_not_gathered_as_it_was(bundles, scans, tmp_path):
    """A part that was done, begun again for other covariates, and killed before the first image."""

    class Dead(Base):
        def encode(self, *given, **named):
            raise KeyboardInterrupt

    engine, dead = (kind(bundles / "aged-1", check=False) for kind in (Engine, Dead))
    out, ages = tmp_path / "latents.tsv", dict.fromkeys(range(PEOPLE), 40)
    table = covariates(tmp_path / "people.tsv", ages)
    encode_files(engine, [scans], out, covariates=table, shard=(0, 2))
    covariates(table, ages | {4: 80})
    encode_files(engine, [scans], out, covariates=table, shard=(1, 2))
    with pytest.raises(KeyboardInterrupt):
        encode_files(dead, [scans], out, covariates=table, shard=(0, 2))
    with pytest.raises(CohortError, match=r"\(0/2\)"):
        gather(out)
    encode_files(engine, [scans], out, covariates=table, shard=(0, 2))
    gather(out)
    encode_files(engine, [scans], tmp_path / "fresh.tsv", covariates=table)
    assert out.read_bytes() == (tmp_path / "fresh.tsv").read_bytes()


def test_a_server_answers_as_its_engine_and_on_from_a_stop(server, engine, scans, whole, tmp_path):
    out = tmp_path / "latents.tsv"
    with Client(server.url, "blobs") as client:
        interrupt(client, [scans], out, 5)
        _, first = json.loads(part(out).read_text().splitlines()[0])
        assert first["run"] | {"server": "kerasvae", **engine.identity} == first["run"]
        encode_files(client, [scans], out)
        assert out.read_bytes() == whole
        interrupt(client, [scans], out, 5)
    with pytest.raises(ArgumentError, match="another bundle or server"):
        encode_files(engine, [scans], out)
    with Client(server.url, "aged") as other, pytest.raises(ArgumentError, match="another model"):
        encode_files(other, [scans], out)


def test_a_client_settles_on_a_version(bundles, tmp_path, scan_file):
    """The version that answers when a run begins answers all of it: if it goes, no other takes its place."""
    served = tmp_path / "served"
    for number in (1, 2):
        renamed(bundles / "blobs-1", served, version=number)
    with Running([served], "--poll", "0.1") as running, Client(running.url, "blobs") as client:
        assert client.settle()["model"] == "blobs 2"
        client.encode(scan_file)
        shutil.rmtree(served / "blobs-2")
        running.wait_for("models", news="blobs 2 is out of service")
        with pytest.raises(AnswerError, match="one in service: 1"):
            client.encode(scan_file)
        with Client(running.url, "blobs") as other:
            other.encode(scan_file)


def test_a_server_keeps_the_contract_as_its_engine_does(server, engine, scans, tmp_path):
    """A scan that was not prepared is no row, whoever encodes; and what stops a run is named."""
    noise = np.random.default_rng(0).uniform(0, 200, blob(FIRST).shape)
    places = [tmp_path / "cohort" / name for name in ("a.nii.gz", "b.nii.gz")]
    write_image(places[0], blob(FIRST), blob_affine())
    write_image(places[1], noise, blob_affine())
    tables = []
    with Client(server.url, "blobs") as client:
        for name, source in (("engine", engine), ("client", client)):
            with pytest.raises(AlignmentError) as caught:
                encode_files(source, [tmp_path / "cohort"], tmp_path / f"{name}.tsv")
            assert str(places[1]) in " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
            left_out = encode_files(source, [tmp_path / "cohort"], tmp_path / f"{name}.tsv", skip_bad=True)
            assert list(left_out) == [str(places[1])]
            tables.append((tmp_path / f"{name}.tsv").read_bytes())
    assert tables[0] == tables[1]
