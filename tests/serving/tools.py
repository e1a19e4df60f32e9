"""The validators of a deployment's files, in an environment of their own, each as a call that says what it found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / "serving" / "tools.txt"
SCHEMAS = Path(__file__).parent / "schemas"
Done = subprocess.CompletedProcess[str]


class Tools:
    """What `serving/tools.txt` names.

    Args:
        home: Of the environment; KERASVAE_TOOLS names one that is there already. promtool is that of the PATH, or is
            unpacked from Debian's package.
    """

    def __init__(self, home: Path) -> None:
        ready = os.environ.get("KERASVAE_TOOLS")
        self.bin = Path(ready) / "bin" if ready else home / "venv" / "bin"
        if not ready:
            subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
            subprocess.run([self.bin / "python", "-m", "pip", "install", "-q", "-r", PINS], check=True)
        self._promtool = shutil.which("promtool") or _unpacked(home / "prometheus")

    def hadolint(self, path: Path) -> Done:
        return _run(self.bin / "hadolint", path)

    def kubernetes(self, path: Path) -> Done:
        """Kubernetes' own kinds; one that it does not know would pass with a warning, and is refused here."""
        done = _run(self.bin / "kubernetes-validate", "--strict", path)
        if "find schema" in done.stdout + done.stderr:
            done.returncode = 1
        return done

    def kustomize(self, folder: Path) -> Done:
        return _run(self.bin / "kubectl", "kustomize", folder)

    def kserve(self, path: Path) -> Done:
        """A kind of KServe's against its schema, and its containers and volumes as those of a pod."""
        found = yaml.safe_load(path.read_text())
        done = _run(self.bin / "check-jsonschema", "--schemafile", SCHEMAS / f"{found['kind']}.json", path)
        spec = found["spec"]
        if done.returncode or "containers" not in spec:
            return done
        pod = {"containers": spec["containers"], "volumes": spec["volumes"]}
        place = path.with_suffix(".pod.yaml")
        place.write_text(
            yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kserve"}, "spec": pod})
        )
        return self.kubernetes(place)

    def operator(self, path: Path) -> Done:
        """A kind of the Prometheus operator's against models that were made from its definitions."""
        return _run(self.bin / "python", Path(__file__).parent / "operator_kinds.py", path)

    def envoy(self, path: Path) -> Done:
        return _run(self.bin / "envoy", "--mode", "validate", "--config-path", path)

    def rules(self, path: Path) -> Done:
        """Alerts as Prometheus reads them."""
        place = path.with_suffix(".rules.yaml")
        place.write_text(yaml.safe_dump(yaml.safe_load(path.read_text())["spec"]))
        return _run(self._promtool, "check", "rules", place)

    def adapter(self, path: Path) -> Done:
        """Queries of the adapter's rules, with its template filled in, as Prometheus reads them."""
        filled = {"<<.Series>>": "made", "<<.LabelMatchers>>": 'namespace="a",pod="b"', "<<.GroupBy>>": "pod"}
        rules = []
        for number, rule in enumerate(yaml.safe_load(path.read_text())["rules"]["custom"]):
            query = rule["metricsQuery"]
            for name, value in filled.items():
                query = query.replace(name, value)
            rules += [{"record": f"query_{number}", "expr": query}]
            rules += [{"record": f"series_{number}", "expr": rule["seriesQuery"]}]
        place = path.with_suffix(".rules.yaml")
        place.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}))
        return _run(self._promtool, "check", "rules", place)

    def cases(self, path: Path) -> Done:
        """Unit tests of alerts."""
        return _run(self._promtool, "test", "rules", path)

    def metrics(self, path: Path) -> Done:
        return subprocess.run(
            [self._promtool, "check", "metrics"], input=path.read_text(), capture_output=True, text=True, check=False
        )


def _run(*call: str | Path) -> Done:
    return subprocess.run([str(each) for each in call], capture_output=True, text=True, check=False, timeout=300)


def _unpacked(folder: Path) -> str:
    """promtool out of Debian's package, which is not installed for that."""
    folder.mkdir()
    download = ["apt-get", "download", "prometheus"]
    if subprocess.run(download, cwd=folder, check=False, capture_output=True).returncode:  # no lists of packages yet
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)
        subprocess.run(download, cwd=folder, check=True, capture_output=True)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    return str(folder / "usr" / "bin" / "promtool")
