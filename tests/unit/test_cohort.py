"""Cohorts and roles: what is read, and what is refused."""

import pytest

from kerasvae.data import Cohort, Split, split_people
from kerasvae.errors import CohortError, SplitError

SELECT = {"suffix": "T1w", "desc": "brain"}


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
    table = blob_cohort / "scans.csv"
    image = "sub-{0}/anat/sub-{0}_desc-brain_T1w.nii.gz"
    rows = [f"sub-{p},{image.format(p)},{p}" for p in ("00", "01")]
    table.write_text("\n".join(["participant_id,path,age", *rows]))
    cohort = Cohort.read(table, covariates=["age"])
    assert [scan.path.is_file() for scan in cohort.scans] == [True, True]


def edit(root, change):
    table = root / "participants.tsv"
    table.write_text(change(table.read_text()))


def test_person_without_image_and_the_reverse(blob_cohort):
    edit(blob_cohort, lambda text: text + "sub-99\t50\tM\tpass\n")
    with pytest.raises(CohortError, match=r"an image for every person.*sub-99"):
        Cohort.read(blob_cohort, select=SELECT)
    assert len(Cohort.read(blob_cohort, select=SELECT, incomplete="leave_out")) == 20
    edit(blob_cohort, lambda text: "\n".join(line for line in text.splitlines() if not line.startswith("sub-03")))
    with pytest.raises(CohortError, match=r"a row in participants.tsv.*sub-03"):
        Cohort.read(blob_cohort, select=SELECT)
    assert len(Cohort.read(blob_cohort, select=SELECT, incomplete="leave_out")) == 19


def test_missing_covariates(blob_cohort):
    with pytest.raises(CohortError, match="Did you mean 'age'"):
        Cohort.read(blob_cohort, select=SELECT, covariates=["agee"])
    edit(blob_cohort, lambda text: text.replace("sub-04\t30.0", "sub-04\tn/a"))
    with pytest.raises(CohortError, match=r"'age'.*sub-04"):
        Cohort.read(blob_cohort, select=SELECT, covariates=["age"])


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
