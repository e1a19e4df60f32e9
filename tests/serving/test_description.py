"""Schemathesis asks whatever the OpenAPI page says may be asked: no fault, and nothing that the page does not say.

Two of its checks are told what is so here: that a page cannot say what a brain is, so not all that fits it is accepted,
and that 501 is an answer about a bundle.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONFIGURATION = """
[checks]
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "501"]

[generation]
max-examples = 60
"""


def attack(url, folder: Path):
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    program = Path(sys.executable).with_name("schemathesis")
    call = [program, "--config-file", folder / "schemathesis.toml", "run", f"{url}/openapi.json"]
    options = ["--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--no-color"]
    return subprocess.run([*map(str, call), *options], cwd=folder, capture_output=True, text=True, timeout=600)


def test_answers_are_as_the_page_says(server, tmp_path):
    done = attack(server.url, tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "16/16" in done.stdout  # no operation was left out
    assert server.get("/v2/health/ready").status_code == 200
