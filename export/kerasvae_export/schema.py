"""The JSON Schema of a bundle's manifest, made of the classes that read it.

python -m kerasvae_export.schema > export/manifest.schema.json
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from typing import Any

from pydantic import BaseModel

from kerasvae.bundle import SCHEMA, Manifest, Reduced, Tensor
from kerasvae.covariates import Covariate
from kerasvae.scoring import Reference

__all__ = ["manifest_schema"]

MAJOR = SCHEMA.split(".")[0]
PARTS: tuple[type[BaseModel], ...] = (Covariate, Reduced, Reference, Tensor)


def manifest_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of `manifest.json`; the docstrings say what keys mean."""
    made = Manifest.model_json_schema()
    for part, description in ((Manifest, made), *((part, made["$defs"][part.__name__]) for part in PARTS)):
        text = inspect.cleandoc(part.__doc__ or "")
        meanings = _meanings(text)
        description["description"] = text.split("\n\n")[0].replace("\n", " ")
        description.pop("title")
        for name, entry in description["properties"].items():
            entry.pop("title", None)
            entry["description"] = meanings[name]
    made["properties"]["schema_version"]["pattern"] = rf"^{MAJOR}\."
    made["required"] = ["schema_version", *made["required"]]
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:kerasvae:manifest:{SCHEMA}",
        "title": f"manifest.json of a kerasvae bundle, schema {SCHEMA}",
    }
    return head | made


def _meanings(docstring: str) -> dict[str, str]:
    """Names and texts of the section Args."""
    section = docstring.split("Args:\n")[1]
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s*\n\s*", " ", text).replace("`", "") for name, text in entries}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(manifest_schema(), indent=2, ensure_ascii=False) + "\n")
