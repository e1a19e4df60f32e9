"""Cohorts and roles: what is read, and what is refused."""

import ctypes
import json
import os

import pytest

from kerasvae.data import Cohort, Split, split_people
from kerasvae.data.simulate import simulate
from kerasvae.errors import ArgumentError, CohortError, SplitError
from kerasvae.training.run import write_scans
from tests.conftest import make_blob_cohort

SELECT = {"suffix": "T1w", "desc": "brain"}
IMAGE = "sub-{0}/anat/sub-{0}_desc-brain_T1w.nii.gz"


def edit(root, change):
    table = root / "participants.tsv"
    table.write_text(change(table.read_text()))


def write_table(root, *rows):
    table = root / "scans.csv"
    table.write_text("\n".join(["participant_id,session_id,path,age,sex", *rows]) + "\n")
    return table


@pytest.fixture
def few(tmp_path):
    """A BIDS derivative of three people."""
    return make_blob_cohort(tmp_path / "few", 3)


@pytest.fixture
def obedient():
    """Permissions hold for root too: CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2) are laid down for the test."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None)
    version, before = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(version, before) == 0
    fewer = (ctypes.c_uint32 * 6)(*before)
    fewer[0] &= ~0b110
    assert libc.capset(version, fewer) == 0
    yield
    assert libc.capset(version, before) == 0


@pytest.fixture
def lock(obedient):
    """A function that takes away every permission of a path, until the test ends."""
    modes = {}

    def take(path):
        modes[path] = path.stat().st_mode
        path.chmod(0)

    yield take
    for path, mode in reversed(modes.items()):
        path.chmod(mode)


def test_bids_derivative(blob_cohort):
    cohort = Cohort.read(blob_cohort, select=SELECT, covariates=["age", "sex"])
    assert len(cohort) == 20
    assert cohort.people[:2] == ["sub-00", "sub-01"]
    assert cohort.numbers("age")[:2] == [20.0, 22.5]
    assert cohort.numbers("sex")[:2] == [1.0, 0.0]


def test_real_derivative(data_folder):
    cohort = Cohort.read(data_folder / "ixi", select=SELECT, covariates=["age", "sex"], exclude={"qc": ["fail"]})
    assert len(cohort) == 139
    assert [reason for _, reason in cohort.excluded] == ["qc = fail", "qc = fail"]


def test_table_with_paths(blob_cohort):
    table = write_table(blob_cohort, *(f"sub-{p},,{IMAGE.format(p)},{p},M" for p in ("00", "01")))
    cohort = Cohort.read(table, covariates=["age"])
    assert [scan.path.is_file() for scan in cohort.scans] == [True, True]
    assert cohort.numbers("age") == [0.0, 1.0]


def test_images_have_one_path_however_the_folder_is_named(blob_cohort, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(blob_cohort)
    monkeypatch.chdir(tmp_path)
    rows = [f"sub-{p},,{IMAGE.format(p)},30,M" for p in ("00", "01")]
    write_table(blob_cohort, *rows)
    for source in ("", "scans.csv"):
        plain = Cohort.read((blob_cohort / source).resolve(), select=SELECT)
        for other in (link / source, os.path.join("link", source), os.path.join("link", "..", "cohort", source)):  # noqa: PTH118
            assert Cohort.read(other, select=SELECT) == plain


def test_paths_in_a_table_begin_where_the_table_is_called(blob_cohort, tmp_path):
    table = write_table(tmp_path, f"sub-00,,{IMAGE.format('00')},30,M").rename(tmp_path / "elsewhere.csv")
    (blob_cohort / "scans.csv").symlink_to(table)
    assert Cohort.read(blob_cohort / "scans.csv").scans[0].path == (blob_cohort / IMAGE.format("00")).resolve()


def test_person_without_image_and_the_reverse(blob_cohort):
    edit(blob_cohort, lambda text: text + "sub-99\t50\tM\tpass\n")
    with pytest.raises(CohortError, match=r"an image for every person.*sub-99"):
        Cohort.read(blob_cohort, select=SELECT)
    assert len(Cohort.read(blob_cohort, select=SELECT, incomplete="leave_out")) == 20
    edit(blob_cohort, lambda text: "\n".join(line for line in text.splitlines() if not line.startswith("sub-03")))
    with pytest.raises(CohortError, match=r"a row in participants.tsv.*sub-03"):
        Cohort.read(blob_cohort, select=SELECT)
    cohort = Cohort.read(blob_cohort, select=SELECT, incomplete="leave_out")
    assert len(cohort) == 19
    assert [(scan.name, scan.path, reason) for scan, reason in cohort.excluded] == [
        ("sub-03", (blob_cohort / IMAGE.format("03")).resolve(), "no row in participants.tsv"),
        ("sub-99", (blob_cohort / "sub-99").resolve(), "no image"),
    ]
    assert cohort.excluded[1][0].covariates["age"] == "50"


def test_whoever_is_left_out_stands_in_the_table_of_scans(few, tmp_path):
    edit(few, lambda text: text + "sub-99\t50\tM\tpass\n")
    cohort = Cohort.read(few, select=SELECT, incomplete="leave_out")
    write_scans(tmp_path / "scans.tsv", cohort, Split(dict.fromkeys(cohort.people, "train")))
    first, *_, last = (tmp_path / "scans.tsv").read_text().splitlines()
    assert set(json.loads((tmp_path / "scans.json").read_text())) == set(first.split("\t"))
    assert last.split("\t") == [
        "sub-99",
        "",
        "excluded",
        "50",
        "M",
        "pass",
        "no image",
        str((few / "sub-99").resolve()),
    ]


def test_rows_whose_file_is_missing(blob_cohort):
    table = write_table(
        blob_cohort,
        f"sub-00,ses-1,{IMAGE.format('00')},30,M",
        "sub-00,ses-2,gone.nii.gz,32,M",
        f"sub-01,ses-1,{IMAGE.format('01')},40,F",
        "sub-01,ses-2,,42,F",
    )
    with pytest.raises(CohortError, match=r"an existing file.*none for sub-00_ses-2, sub-01_ses-2"):
        Cohort.read(table)
    cohort = Cohort.read(table, incomplete="leave_out")
    assert [scan.name for scan in cohort.scans] == ["sub-00_ses-1", "sub-01_ses-1"]
    assert [(s.name, reason) for s, reason in cohort.excluded] == [
        ("sub-00_ses-2", "no such file"),
        ("sub-01_ses-2", "no such file"),
    ]
    assert cohort.excluded[0][0].path == blob_cohort.resolve() / "gone.nii.gz"


@pytest.mark.parametrize("incomplete", ["refuse", "leave_out"])
def test_whoever_is_excluded_need_not_be_complete(blob_cohort, incomplete):
    edit(blob_cohort, lambda text: text + "sub-99\t50\tM\tfail\nsub-98\tn/a\tM\tfail\n")
    cohort = Cohort.read(
        blob_cohort, select=SELECT, covariates=["age"], exclude={"qc": ["fail"]}, incomplete=incomplete
    )
    assert len(cohort) == 20
    assert [(scan.name, reason) for scan, reason in cohort.excluded] == [
        ("sub-98", "qc = fail"),
        ("sub-99", "qc = fail"),
    ]


def test_values_to_exclude_mind_capitals(blob_cohort):
    edit(
        blob_cohort,
        lambda text: text.replace("27.5\tF\tpass", "27.5\tF\tn/a").replace("30.0\tM\tpass", "30.0\tM\tfail"),
    )
    read = lambda **values: Cohort.read(blob_cohort, select=SELECT, exclude=values)  # noqa: E731
    with pytest.raises(CohortError, match=r"'FAIL'.*the column 'qc' .*'pass', .*Did you mean 'fail'\?$") as caught:
        read(qc=["fail", "FAIL"])
    assert "\n" not in str(caught.value)
    # a recipe that leaves out failures goes for a cohort without any
    assert len(read(age=["55"]).scans) == 20
    with pytest.raises(CohortError, match="Did you mean 'qc'"):
        read(qcc=["fail"])
    assert [(scan.name, reason) for scan, reason in read(qc=["fail", "n/a"]).excluded] == [
        ("sub-03", "qc = n/a"),
        ("sub-04", "qc = fail"),
    ]


def test_missing_covariates(blob_cohort):
    with pytest.raises(CohortError, match="Did you mean 'age'"):
        Cohort.read(blob_cohort, select=SELECT, covariates=["agee"])
    edit(blob_cohort, lambda text: text.replace("sub-04\t30.0", "sub-04\tn/a"))
    with pytest.raises(CohortError, match=r"'age'.*sub-04"):
        Cohort.read(blob_cohort, select=SELECT, covariates=["age"])


def test_columns_to_balance_are_refused_as_covariates_are(blob_cohort):
    edit(blob_cohort, lambda text: text.replace("30.0\tM", "30.0\tn/a"))
    cohort = Cohort.read(blob_cohort, select=SELECT)
    assert cohort.split(FRACTIONS, stratify=["age"]).counts()["train"] == 12
    with pytest.raises(CohortError, match="Did you mean 'age'"):
        cohort.split(FRACTIONS, stratify=["age", "agee"])
    with pytest.raises(CohortError, match=r"'sex'.*nothing for 1 of 20, the first sub-04"):
        cohort.split(FRACTIONS, stratify=["sex"])
    with pytest.raises(CohortError, match="Did you mean 'qc'"):
        cohort.split(FRACTIONS, column="qcc")


def test_nothing_there(tmp_path, blob_cohort):
    with pytest.raises(CohortError, match="nothing there"):
        Cohort.read(tmp_path / "absent")
    with pytest.raises(CohortError, match="suffix 'bold'"):
        Cohort.read(blob_cohort, select={"suffix": "bold"})
    (blob_cohort / "participants.tsv").unlink()
    with pytest.raises(CohortError, match=r"contain participants\.tsv"):
        Cohort.read(blob_cohort, select=SELECT)


def test_two_images_of_one_visit_are_ambiguous(blob_cohort):
    anat = blob_cohort / "sub-00" / "anat"
    original = anat / "sub-00_desc-brain_T1w.nii.gz"
    (anat / "sub-00_acq-b_desc-brain_T1w.nii.gz").write_bytes(original.read_bytes())
    with pytest.raises(CohortError, match="2 images for sub-00"):
        Cohort.read(blob_cohort, select=SELECT)


def test_one_row_for_each_person(blob_cohort):
    edit(blob_cohort, lambda text: text + "sub-04\t77\tF\tpass\n")
    with pytest.raises(CohortError, match=r"participants\.tsv must have one row for each participant_id.*2 .*sub-04"):
        Cohort.read(blob_cohort, select=SELECT)


def test_one_row_for_each_session(few):
    visit = few / "sub-00" / "ses-1" / "anat" / "sub-00_ses-1_desc-brain_T1w.nii.gz"
    visit.parent.mkdir(parents=True)
    (few / IMAGE.format("00")).rename(visit)
    (few / "sub-00" / "sub-00_sessions.tsv").write_text("session_id\tage\nses-1\t21\n")
    assert Cohort.read(few, select=SELECT).column("age")[0] == "21"
    (few / "sub-00" / "sub-00_sessions.tsv").write_text("session_id\tage\nses-1\t21\nses-1\t22\n")
    with pytest.raises(CohortError, match=r"sub-00_sessions\.tsv must have one row for each session_id"):
        Cohort.read(few, select=SELECT)


@pytest.mark.parametrize("cell", ["", "n/a"])
def test_every_row_names_its_person(few, cell):
    table = write_table(few, f"sub-00,,{IMAGE.format('00')},30,M", f"{cell},,{IMAGE.format('01')},40,F")
    with pytest.raises(CohortError, match=r"scans\.csv must have a participant_id in every row.*none in row 2"):
        Cohort.read(table)
    edit(few, lambda text: text + f"{cell}\t50\tM\tpass\n")
    with pytest.raises(CohortError, match=r"participants\.tsv must have a participant_id in every row.*none in row 4"):
        Cohort.read(few, select=SELECT)


def test_one_image_is_not_two_scans(few):
    (few / "copy.nii.gz").symlink_to(few / IMAGE.format("00"))
    rows = [f"sub-00,,{IMAGE.format('00')},30,M", "sub-01,,copy.nii.gz,40,F"]
    with pytest.raises(
        CohortError, match=r"an image of its own.*sub-00_desc-brain_T1w\.nii\.gz for both sub-00 and sub-01"
    ):
        Cohort.read(write_table(few, *rows))
    # whoever is excluded may share it
    assert len(Cohort.read(write_table(few, *rows), exclude={"sex": ["F"]})) == 1


def test_misspelt_entities(few):
    with pytest.raises(CohortError, match=r"few must name BIDS entities, but received 'sufix'. Did you mean 'suffix'"):
        Cohort.read(few, select={"sufix": "T1w"})
    with pytest.raises(CohortError, match="received 'return_type'"):
        Cohort.read(few, select={"return_type": "id"})
    assert len(Cohort.read(few, select={**SELECT, "extension": ".nii.gz"})) == 3


def test_templates_and_averages_are_nobody(few):
    image = (few / IMAGE.format("00")).read_bytes()
    (few / "group").mkdir()
    (few / "group" / "group_desc-brain_T1w.nii.gz").write_bytes(image)
    (few / "tpl-blobs_desc-brain_T1w.nii.gz").write_bytes(image)
    cohort = Cohort.read(few, select=SELECT)
    assert len(cohort) == len(cohort.people) == 3
    (few / "group" / "group_desc-mean_T1w.nii.gz").write_bytes(image)
    with pytest.raises(CohortError, match="contain images with suffix 'T1w', desc 'mean', but received none"):
        Cohort.read(few, select={"suffix": "T1w", "desc": "mean"})


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[1]"])
@pytest.mark.parametrize(
    "place", ["dataset_description.json", "T1w.json", IMAGE.format("01").replace("nii.gz", "json")]
)
def test_broken_json_is_named(few, place, content):
    (few / place).write_bytes(content)
    with pytest.raises(CohortError, match=f"{place} must hold a JSON object") as caught:
        Cohort.read(few, select=SELECT)
    assert "\n" not in str(caught.value)


def test_what_else_pybids_refuses_is_a_sentence(few):
    (few / IMAGE.format("01").replace("nii.gz", "json")).write_text('{"desc": "head"}')
    with pytest.raises(
        CohortError, match=r"be a BIDS derivative that PyBIDS can read.*sub-01_desc-brain_T1w"
    ) as caught:
        Cohort.read(few, select=SELECT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["", "sub-01", "sub-01/anat"])
@pytest.mark.parametrize("incomplete", ["refuse", "leave_out"])
def test_locked_folders_are_named(few, lock, place, incomplete):
    lock(few / place)
    with pytest.raises(CohortError, match=f"{(few / place).resolve()} must be readable, but received permission"):
        Cohort.read(few, select=SELECT, incomplete=incomplete)


def test_locked_tables_are_named(few, lock):
    table = write_table(few, f"sub-00,,{IMAGE.format('00')},30,M")
    lock(few / "sub-00")
    with pytest.raises(CohortError, match=rf"{IMAGE.format('00')} must be readable"):
        Cohort.read(table, incomplete="leave_out")
    lock(few / "participants.tsv")
    (few / "sub-00").chmod(0o700)
    with pytest.raises(CohortError, match=r"participants\.tsv must be a readable table"):
        Cohort.read(few, select=SELECT)
    lock(few)
    with pytest.raises(CohortError, match=r"scans\.csv must be readable"):
        Cohort.read(table)


def test_a_link_to_itself_is_named(few):
    (few / "loop.nii.gz").symlink_to("loop.nii.gz")
    with pytest.raises(CohortError, match=r"loop\.nii\.gz must"):
        Cohort.read(write_table(few, "sub-00,,loop.nii.gz,30,M"))


def test_a_simulation_is_not_written_into_a_broken_folder(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "Simul')
    with pytest.raises(ArgumentError, match="one that holds something else"):
        simulate(tmp_path, people=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["dataset_description.json"]


FRACTIONS = {"train": 0.6, "validation": 0.1, "calibration": 0.1, "test": 0.2}


def test_roles_are_disjoint_complete_balanced_and_seeded():
    keys = {f"sub-{i:03d}": (float(i % 2), float(i)) for i in range(100)}
    split = split_people(keys, FRACTIONS, seed=1)
    assert split.counts() == {"train": 60, "validation": 10, "calibration": 10, "test": 20}
    assert sorted(split.roles) == sorted(keys)
    test = [keys[person] for person in split.people("test")]
    assert abs(sum(sex for sex, _ in test) - 10) <= 2
    assert abs(sum(age for _, age in test) / 20 - 49.5) < 6
    assert split == split_people(keys, FRACTIONS, seed=1)
    assert split != split_people(keys, FRACTIONS, seed=2)


@pytest.mark.parametrize(
    "fractions",
    [{"train": 0.5, "test": 0.4}, {"train": 1.2, "test": -0.2}, {"trian": 1.0}, {"validation": 1.0}],
)
def test_bad_shares_are_refused(fractions):
    with pytest.raises(SplitError, match="shares"):
        split_people({f"sub-{i}": () for i in range(10)}, fractions)


def test_a_role_with_a_share_needs_a_person():
    with pytest.raises(SplitError, match="no one for"):
        split_people({"sub-1": (), "sub-2": ()}, FRACTIONS)


def test_one_person_in_two_roles_is_refused():
    with pytest.raises(SplitError, match=r"All scans of sub-1 must have one role.*'train' and 'test'"):
        Split.from_scans([("sub-1", "train"), ("sub-1", "test")])
    with pytest.raises(SplitError, match="Did you mean 'validation'"):
        Split.from_scans([("sub-1", "validaton")])


def test_folds_test_everyone_once_and_balance_what_they_are_asked_to():
    keys = {f"sub-{i:03}": (float(i % 2), float(i)) for i in range(103)}
    splits = [split_people(keys, FRACTIONS, seed=3, fold=fold, folds=5) for fold in range(5)]
    tested = [set(split.people("test")) for split in splits]
    assert sorted(person for people in tested for person in people) == sorted(keys)
    assert {len(people) for people in tested} == {20, 21}
    for split, people in zip(splits, tested, strict=True):
        assert abs(sum(keys[p][0] for p in people) / len(people) - 0.5) < 0.06
        assert abs(sum(keys[p][1] for p in people) / len(people) - 51) < 6
        others, rest = split.counts(), 1 - FRACTIONS["test"]
        for role in ("train", "validation", "calibration"):
            assert others[role] == pytest.approx((103 - len(people)) * FRACTIONS[role] / rest, abs=1)
    assert tested == [set(split_people(keys, FRACTIONS, seed=3, fold=f, folds=5).people("test")) for f in range(5)]
    assert tested[0] != set(split_people(keys, FRACTIONS, seed=4, fold=0, folds=5).people("test"))


def test_more_folds_than_people():
    with pytest.raises(SplitError, match="no one for test"):
        split_people({f"sub-{i}": () for i in range(8)}, FRACTIONS, fold=9, folds=10)
