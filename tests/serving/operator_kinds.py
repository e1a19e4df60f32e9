"""Whether a ServiceMonitor or PrometheusRule holds what its model knows and nothing else.

Run by the Python of the tools' environment. The models drop names that they do not know: such names are found by what
comes back.
"""

import sys
from pathlib import Path

import yaml
from cloudcoil.models.prometheus_operator import v1
from pydantic import ValidationError


def lost(given, back, place=""):
    """Places that are in one and not, or otherwise, in the other."""
    if isinstance(given, dict) and isinstance(back, dict):
        return [found for key in given for found in lost(given[key], back.get(key), f"{place}.{key}")]
    if isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        return [found for i, pair in enumerate(zip(given, back, strict=True)) for found in lost(*pair, f"{place}[{i}]")]
    return [] if given == back else [f"{place}: {given!r}"]


def main(path):
    given = yaml.safe_load(Path(path).read_text())
    try:
        made = getattr(v1, given["kind"]).model_validate(given)
    except ValidationError as error:
        sys.exit(str(error))
    unknown = lost(given, made.model_dump(mode="json", by_alias=True, exclude_unset=True))
    sys.exit("; ".join(unknown) or 0)


if __name__ == "__main__":
    main(sys.argv[1])
