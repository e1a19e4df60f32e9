"""The README is true: its Python runs, its commands exist, its links lead somewhere; so are the other guides."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_tour_runs_and_is_short(tmp_path):
    (tour,) = blocks(README, "python")
    assert len([line for line in tour.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 20
    (tmp_path / "tour.py").write_text(tour, encoding="utf-8")
    call = [sys.executable, "tour.py"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "bundle" / "encoder.onnx").is_file()


def test_commands_exist_with_their_options():
    calls = [
        line.split("#")[0]
        for block in blocks(README, "sh")
        for line in re.split(r"\n|&&", block)
        if "kerasvae " in line
    ]
    assert len(calls) >= 5
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    for call in calls:
        words = shlex.split(call)
        command = words[1]
        help_ = [sys.executable, "-m", "kerasvae.cli", command, "--help"]
        done = subprocess.run(help_, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, command
        for option in (word for word in words if word.startswith("--")):
            assert option in done.stdout


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(guide):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", guide.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (guide.parent / target).exists(), target


def recipe_rows():
    """One row for each key of a recipe, from the code."""
    from kerasvae.training.recipe import Recipe, Section

    for name, field in Recipe.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, Section)):
            continue
        for key, info in section.model_fields.items():
            default = "required" if info.is_required() else f"`{info.default!r}`"
            yield f"| `{name}.{key}` | {default} | {info.description or ''} |"


def test_every_key_of_a_recipe_is_in_the_guide():
    guide = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in guide if re.match(r"\| `\w+\.\w+` \| (`|required)", row)] == list(recipe_rows())


@pytest.mark.parametrize("guide", GUIDES[1:], ids=lambda path: str(path.relative_to(ROOT)))
def test_code_of_the_guides_runs(guide, tmp_path):
    for number, code in enumerate(blocks(guide.read_text(encoding="utf-8"), "python")):
        script = tmp_path / f"block{number}.py"
        script.write_text(code, encoding="utf-8")
        done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
