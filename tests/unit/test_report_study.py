"""The sections of a report that a study adds: there, not there, damaged, and what they say at the top of the page."""

import json
import re
import subprocess
import sys

import pytest
from scipy.stats import false_discovery_control

from kerasvae.analysis.report.associations import associations_view
from kerasvae.analysis.report.deviations import deviations_view, order_of, read_judged
from kerasvae.analysis.report.maps import maps_view
from kerasvae.analysis.report.page import write_report
from kerasvae.analysis.report.predictions import predictions_view
from kerasvae.analysis.report.sections import PARTS, sections_of
from kerasvae.analysis.report.site import site_view
from tests.pages import Page, make_run, page_of
from tests.studies import (
    judged,
    space,
    write_associations,
    write_deviations,
    write_maps,
    write_predictions,
    write_site,
    write_study,
)

NAMES = ["associations", "predictions", "maps", "deviations", "site"]
EVIL = '"><img src=x onerror=alert(1)></svg><script>$\\frac{1}$'


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = write_study(make_run(tmp_path_factory.mktemp("runs") / "run"))
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_each_part_has_a_section_where_its_files_are(page):
    assert [part.name for part in PARTS] == NAMES
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == ["verdict", "figures", "cohort", "learning", "brains", "latents", *NAMES, "reproduce"]
    links = {attributes["href"] for attributes in page.all("a")}
    assert {f"#{name}" for name in NAMES} <= links
    assert "Not asked yet" not in page.text


def test_what_is_not_there_is_a_line_with_its_command(tmp_path):
    folder = make_run(tmp_path / "run")
    write_site(folder)
    page = page_of(folder)
    assert [a["id"] for a in page.all("section")][-3:] == ["site", "more", "reproduce"]
    for command in ("associate", "predict", "maps", "deviate"):
        assert f"kerasvae {command} RUN" in page.text
    assert "kerasvae harmonize RUN" not in page.text


def test_page_with_a_study_is_still_safe_small_and_for_everyone(source, page):
    assert len(source) < 5_000_000
    assert not re.search(r"https?://", source)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert all(len(attributes["alt"]) > 20 for attributes in page.all("img"))
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in page.all("svg"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    strips = [a for a in page.all("div") if a.get("class") == "strip"]
    assert len(strips) == 2  # along age, along dimension 0
    for strip in strips:
        assert strip["tabindex"] == "0"
        assert "5 steps from −2 SD to +2 SD" in strip["aria-label"].replace("*", "")
    assert len(page.all("img")) == 2 * 5


def test_sections_say_what_the_files_hold(page):
    for words in (
        "age, 40 people, head_size held the same: all 3 dimensions together R 0.70, p 0.0020",
        "0.055 (0.045 to 0.065)", "0.55 (0.35 to 0.75)", "1999 of Freedman and Lane’s", "0.0005",
        "Codes are those of train, test people", "group has three levels or more",
        "0.78 (0.68 to 0.86)", "0.82 (0.74 to 0.89)", "−0.04 (−0.08 to −0.01)", "Covariates alone", "Over 2 runs",
        "age, latents: r 0.78, by chance 0.01, p 0.0100 by permutation",
        "The image for a unit more of age", "sex held the same", "−2 SD* age −25", "+1 SD age +12.5",
            "the cohort has 26 to 75, the steps 25 to 75", "bend is 3 %",
        "Of 2 people (test), 1 stands out", "1/(30 + 1) = 0.032", "sub-11 *".replace(" ", ""), "(4, 8, 9)",
        "scanner: balanced accuracy", "latents, after ComBat", "0.510", "B: 21 scans fitted to, 11 other people",
            "scanner: scored on 20 people, 9 of A, 11 of B.",
    ):  # fmt: skip
        assert words in page.text, words


def test_findings_stand_at_the_top(page):
    verdict = page.text[: page.text.index("What it is")]
    for words in (
        "PCA tells age better than the latents do: r of ours less PCA’s −0.04 (−0.08 to −0.01).",
        "1 of 2 scans stand out at a false discovery rate of 0.1: sub-11.",
        "ComBat took scanner out: the codes told it before and do no longer (balanced accuracy 0.90 before, p 0.005; "
        "0.51 after, p 0.400; chance 0.50).",
        "No problem, but 3 warnings.",  # PCA explains more and predicts better, of few people
    ):
        assert words in verdict, words


def test_names_are_text_and_never_markup(tmp_path):
    folder = make_run(tmp_path / "run")
    write_associations(folder, names=(EVIL, "sex"))
    write_predictions(folder, name=EVIL)
    write_maps(folder, meaning=EVIL)
    write_deviations(folder, [judged(EVIL), judged("../../sub-1", (0.03,) * 3, (0.05,) * 3, region=EVIL, role=EVIL)])
    write_site(folder, site=EVIL)
    page = page_of(folder)
    assert not [section for section in sections_of(folder)[0] if section.damaged]
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(attributes["src"].startswith("data:image/png") for attributes in page.all("img"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(EVIL) >= 5


def test_page_is_the_same_when_written_again_and_needs_no_tensorflow(tmp_path, source):
    folder = write_study(make_run(tmp_path / "run"))
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'keras', 'tensorflow_probability', 'tf_keras'): sys.modules[name] = None\n"
        "from kerasvae.analysis.report.page import write_report\n"
        f"write_report({str(folder)!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").read_text(encoding="utf-8") == source


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(path, key):
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))


DAMAGES = {
    "a table cut in a row": (write_associations, lambda f: cut(f / "associations.tsv")),
    "a table without a column": (
        write_associations, lambda f: (f / "associations.tsv").write_text("variable\tdimension\nage\t0\n"),
    ),
    "an empty table": (write_associations, lambda f: (f / "associations.tsv").write_text("")),
    "a table that is no text": (write_associations, lambda f: (f / "associations.tsv").write_bytes(b"\xff\xfe\x00")),
    "a count that is no number": (
        write_associations,
        lambda f: (f / "associations.tsv").write_text((f / "associations.tsv").read_text().replace("\t40\t", "\tx\t")),
    ),
    "no sidecar": (write_associations, lambda f: (f / "associations.json").unlink()),
    "a sidecar without settings": (write_associations, lambda f: without(f / "associations.json", "Settings")),
    "half of a JSON": (write_predictions, lambda f: cut(f / "predictions.json")),
    "a JSON of another kind": (write_predictions, lambda f: (f / "predictions.json").write_text("[1]")),
    "a JSON without figures": (write_predictions, lambda f: without(f / "predictions.json", "Figures")),
    "no maps": (lambda f: (f / "maps").mkdir(), lambda f: None),
    "a map cut in half": (write_maps, lambda f: cut(f / "maps" / "age_slope.nii.gz")),
    "a map that is none": (write_maps, lambda f: (f / "maps" / "age_z.nii.gz").write_bytes(b"no image")),
    "a traversal cut in half": (write_maps, lambda f: cut(f / "maps" / "age_traversal.nii.gz")),
    "a traversal without positions": (
        write_maps, lambda f: without(f / "maps" / "age_traversal.json", "Positions"),
    ),
    "deviations without calibration": (
        lambda f: write_deviations(f, [judged("a")]),
        lambda f: without(f / "deviations" / "deviations.json", "Settings"),
    ),
    "a score that is none": (lambda f: write_deviations(f, [judged("a", p_extent="much")]), lambda f: None),
    "a map of a person that is none": (
        lambda f: write_deviations(f, [judged("a")]), lambda f: cut(f / "deviations" / "a_z.nii.gz"),
    ),
    "spaces without accuracy": (lambda f: write_site(f, [{"name": "latents", "harmonized": True}]), lambda f: None),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_in_one_sentence(tmp_path, damage):
    write, spoil = DAMAGES[damage]
    write(tmp_path)
    spoil(tmp_path)
    (section,), missing = sections_of(tmp_path)
    assert len(missing) == len(PARTS) - 1
    assert section.content == {}
    assert " must " in section.damaged
    assert ", but received " in section.damaged
    assert "Traceback" not in section.damaged
    assert str(tmp_path) not in section.damaged
    assert [(finding.level, finding.text) for finding in section.findings] == [("warning", section.damaged)]


def test_a_damaged_part_leaves_the_others(tmp_path):
    folder = make_run(tmp_path / "run")
    write_associations(folder)
    write_site(folder)
    (folder / "associations.json").write_text("{")
    page = page_of(folder)
    told = "associations.tsv must be as kerasvae wrote it, but received one that cannot be read (JSONDecodeError). "
    assert page.text.count(told + "Make it again with kerasvae associate.") == 2  # in its section, and on top
    assert "after ComBat" in page.text


def test_few_people_and_a_joint_test_that_was_none_are_told(tmp_path):
    write_associations(tmp_path, people=29)
    text = " ".join(finding.text for finding in associations_view(tmp_path).findings)
    assert "few people: age on 29 people, group on 29 people, sex on 29 people" in text
    write_associations(tmp_path, people=30)
    assert associations_view(tmp_path).findings == []
    table = tmp_path / "associations.tsv"
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    at = lines[0].index("p")
    for line in lines:
        line[at] = "n/a" if line[1] == "joint" and line[0] == "age" else line[at]
    table.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    (finding,) = associations_view(tmp_path).findings
    assert "not tested against age:" in finding.text


def test_predictions_of_few_people_or_none_better_than_chance(tmp_path):
    write_predictions(tmp_path, people=20)
    content = json.loads((tmp_path / "predictions.json").read_text())
    content["Figures"]["age"]["permutation"]["latents"]["p"] = 0.3
    content["Figures"]["age"]["differences"] = {}
    (tmp_path / "predictions.json").write_text(json.dumps(content))
    view = predictions_view(tmp_path)
    assert [finding.level for finding in view.findings] == ["warning", "note"]
    assert "age of 20 people" in view.findings[0].text
    assert view.content["columns"][-1] == "Ours less PCA"
    assert view.content["rows"][0]["cells"][-1] == ("–", "")


def test_predictions_beside_nothing_have_no_column_of_pca(tmp_path):
    write_predictions(tmp_path)
    content = json.loads((tmp_path / "predictions.json").read_text())
    del content["Figures"]["age"]["by"]["pca"]
    (tmp_path / "predictions.json").write_text(json.dumps(content))
    view = predictions_view(tmp_path)
    assert view.content["columns"] == ["Ours", "Covariates alone"]
    assert not view.content["beside_pca"]


def test_people_come_by_q_and_then_by_p(tmp_path):
    rows = [
        judged("tie", (0.04, 0.9, 0.9)),
        judged("first of a tie", (0.04, 0.1, 0.1)),
        judged("middle", (0.5, 0.02, 0.5)),
        judged("told", (0.2, 0.2, 0.06), (0.3, 0.3, 0.1)),
        judged("of the crowd"),
    ]
    write_deviations(tmp_path, rows)
    order = [each.person for each in order_of(read_judged(tmp_path / "deviations" / "deviations.tsv"))]
    assert order == ["told", "middle", "first of a tie", "tie", "of the crowd"]


def test_ten_people_are_shown_and_three_drawn_at_most(tmp_path):
    write_deviations(tmp_path, [judged(f"sub-{i}", session_id=f"ses-{i}") for i in range(12)])
    content = deviations_view(tmp_path).content
    assert (len(content["rows"]), len(content["maps"]), content["people"]) == (10, 3, 12)
    assert content["maps"][0]["name"] == "sub-0 ses-0"


def test_who_has_no_map_is_in_the_table_alone(tmp_path):
    write_deviations(tmp_path, [judged("a"), judged("b")])
    (tmp_path / "deviations" / "a_z.nii.gz").unlink()
    content = deviations_view(tmp_path).content
    assert [row["name"] for row in content["rows"]] == ["a", "b"]
    assert [each["name"] for each in content["maps"]] == ["b"]


@pytest.mark.parametrize(("calibration", "told"), [(18, True), (19, False)])
def test_too_few_calibration_people_for_a_small_p_are_told(tmp_path, calibration, told):
    write_deviations(tmp_path, [judged("a")], calibration=calibration)
    levels = [finding.level for finding in deviations_view(tmp_path).findings]
    assert (levels == ["warning"]) is told
    assert (1 / (calibration + 1) > 0.05) is told


@pytest.mark.parametrize(("scans", "calibration"), [(42, 28), (40, 19), (9, 30), (100, 99)])
def test_how_many_it_takes_for_a_small_q_is_what_scipy_says(tmp_path, scans, calibration):
    write_deviations(tmp_path, [judged(f"sub-{i}") for i in range(scans)], calibration=calibration)
    needed, least = deviations_view(tmp_path).content["needed"], 1 / (calibration + 1)
    for small, enough in ((needed, True), (needed - 1, False)):
        if 0 < small <= 3 * scans:
            q = false_discovery_control([least] * small + [1.0] * (3 * scans - small))
            assert bool(q.min() <= 0.1 + 1e-12) is enough


def test_what_was_held_the_same_is_said_of_each_variable(tmp_path):
    write_associations(tmp_path)
    assert associations_view(tmp_path).content["held"] == "head_size held the same"
    described = json.loads((tmp_path / "associations.json").read_text())
    described["Settings"] |= {"covariates": ["age"], "held_same": {"age": [], "group": ["age"], "sex": ["age"]}}
    (tmp_path / "associations.json").write_text(json.dumps(described))
    content = associations_view(tmp_path).content
    assert content["held"] == "held the same: for age nothing; for group, sex age"
    sentences = {sentence.split(",")[0]: sentence for sentence in content["sentences"]}
    assert "held the same" not in sentences["age"]
    assert "age held the same" in sentences["sex"]
    del described["Settings"]["held_same"]  # as tables of earlier versions are
    (tmp_path / "associations.json").write_text(json.dumps(described))
    assert associations_view(tmp_path).content == content


@pytest.mark.parametrize(
    ("spaces", "levels"),
    [
        ([("latents", False, 0.9, 0.005, 0.6), ("latents", True, 0.7, 0.01, 0.6)], ["warning"]),
        ([("latents", False, 0.9, 0.005, 0.6), ("latents", True, 0.7, 0.01, 0.45)], ["warning", "warning"]),
        (
            [("latents", False, 0.9, 0.005), ("latents", True, 0.7, 0.01), ("kept alone", False, 0.72, 0.01)],
            ["note"],
        ),
        ([("latents", False, 0.9, 0.005, 0.6), ("latents", True, 0.5, 0.06, 0.6)], ["good"]),
        ([("latents", False, 0.6, 0.2), ("latents", True, 0.7, 0.055)], ["warning"]),  # it rose
        ([("latents", False, 0.6, 0.2), ("latents", True, 0.8, 0.005)], ["warning"]),
        ([("latents", False, 0.6, 0.2), ("latents", True, 0.5, 0.5)], ["note"]),  # it was not there
        ([("latents", False, 0.7, 0.05), ("latents", True, 0.68, 0.06)], ["note"]),  # it hardly fell
        ([("latents", False, None, None), ("latents", True, None, None)], ["note"]),
        ([], ["note"]),
    ],
)
def test_what_is_said_of_the_site(tmp_path, spaces, levels):
    write_site(tmp_path, [space(*each) for each in spaces] or [space("PCA of voxels", False, 0.9, 0.005)])
    assert [finding.level for finding in site_view(tmp_path).findings] == levels


def test_maps_beyond_the_budget_are_named(tmp_path, monkeypatch):
    write_maps(tmp_path, dimensions=4)
    content = maps_view(tmp_path).content
    assert [len(content[kind]) for kind in ("maps", "strips", "axes")] == [1, 1, 4]
    assert content["left_out"] == []
    size = len(content["maps"][0]["figure"]) + content["strips"][0][1].size
    monkeypatch.setattr("kerasvae.analysis.report.maps.BUDGET", size + 1)
    content = maps_view(tmp_path).content
    assert [len(content[kind]) for kind in ("strips", "axes")] == [1, 1]  # one more begins below the budget
    assert content["left_out"] == ["dimension 1", "dimension 2", "dimension 3"]
