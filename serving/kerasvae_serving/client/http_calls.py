"""The calls over HTTP: kerasvae's own interface, the Open Inference Protocol with binary tensors, TF Serving's REST."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

from kerasvae_serving import open_inference as oip
from kerasvae_serving.client.calls import (
    Arrays,
    Covariates,
    Encoded,
    Part,
    Scan,
    Server,
    content_of,
    nifti_for,
    numbers_of,
    refuse,
)

__all__ = ["HttpCall", "HttpCalls"]

ONLY = {"encoder": "mean", "decoder": "reconstruction"}
"""The output of a graph that has no other: TF Serving gives it without its name."""


@dataclass(frozen=True)
class HttpCall:
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], Any]
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HttpCalls:
    """See `Calls`."""

    model: str
    version: int | None
    server: Server

    def of_version(self, version: int) -> Self:
        """See `Calls.of_version`."""
        return replace(self, version=version)

    def ready(self) -> HttpCall:
        """See `Calls.ready`."""
        if self.server == "tf-serving":
            return HttpCall("GET", self._place("v1", self.model), _available)
        return HttpCall("GET", "/v2/health/ready", lambda answer: True)

    def models(self) -> HttpCall:
        """See `Calls.models`."""
        self._ours("covariates")
        return HttpCall("GET", "/v1/models", lambda answer: answer.json()["models"])

    def encode(self, scan: Scan, covariates: Covariates | None) -> HttpCall:
        """See `Calls.encode`."""
        if self.server == "kerasvae":
            return self._file("encode", scan, covariates, _encoded)
        if self.server == "triton":
            raise refuse(self.server, "encode")
        packed = base64.b64encode(nifti_for(scan, covariates)).decode("ascii")
        body = {"signature_name": "encode_nifti", "instances": [{"nifti": {"b64": packed}}]}

        def read(answer: httpx.Response) -> Encoded:
            row = answer.json()["predictions"][0]
            return Encoded(_named(row, ONLY["encoder"]))

        return self._predict(body, read)

    def score(self, scan: Scan, covariates: Covariates | None) -> HttpCall:
        """See `Calls.score`."""
        self._ours("score")
        return self._file("score", scan, covariates, _encoded)

    def map_of(self, kind: str, scan: Scan, covariates: Covariates | None, space: str) -> HttpCall:
        """See `Calls.map_of`."""
        self._ours(kind)
        return self._file(kind, scan, {**(covariates or {}), "space": space}, lambda answer: answer.content)

    def infer(self, part: Part, arrays: Arrays) -> HttpCall:
        """See `Calls.infer`."""
        given = numbers_of(arrays)
        if self.server == "tf-serving":
            signature = {"encoder": "encode", "decoder": "decode"}[part]
            body = {"signature_name": signature, "inputs": {name: value.tolist() for name, value in given.items()}}
            return self._predict(body, lambda answer: _named(answer.json()["outputs"], ONLY[part]))
        entries = [
            {"name": name, "shape": list(value.shape), "datatype": "FP32"}
            | {"parameters": {"binary_data_size": value.nbytes}}
            for name, value in given.items()
        ]
        head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
        content = b"".join([head, *(value.astype("<f4", copy=False).tobytes() for value in given.values())])
        model = self.model if part == "encoder" else f"{self.model}-decoder"
        headers = {oip.JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        return HttpCall("POST", f"{self._place('v2', model)}/infer", _tensors, content, headers)

    def _place(self, api: str, model: str) -> str:
        path = f"/{api}/models/{quote(model, safe='')}"
        return path if self.version is None else f"{path}/versions/{self.version}"

    def _ours(self, what: str) -> None:
        if self.server != "kerasvae":
            raise refuse(self.server, what)

    def _file(self, verb: str, scan: Scan, given: Covariates | None, read: Callable[..., Any]) -> HttpCall:
        parameters = {name: str(value) for name, value in (given or {}).items()}
        headers = {"Content-Type": "application/octet-stream"}
        path = f"{self._place('v1', self.model)}:{verb}"
        return HttpCall("POST", path, read, content_of(scan), headers, parameters)

    def _predict(self, body: Mapping[str, Any], read: Callable[..., Any]) -> HttpCall:
        headers = {"Content-Type": "application/json"}
        return HttpCall("POST", f"{self._place('v1', self.model)}:predict", read, json.dumps(body).encode(), headers)


def _available(answer: httpx.Response) -> bool:
    return any(entry["state"] == "AVAILABLE" for entry in answer.json()["model_version_status"])


def _named(found: Any, only: str) -> Arrays:
    """Outputs of TF Serving's REST; one that is alone comes without its name."""
    return {name: _array(value) for name, value in (found if isinstance(found, dict) else {only: found}).items()}


def _array(value: Any) -> NDArray[Any]:
    """Numbers of JSON: codes stay whole."""
    found = np.asarray(value)
    return found.astype(np.float32) if found.dtype.kind == "f" else found


def _encoded(answer: httpx.Response) -> Encoded:
    content = answer.json()
    return Encoded(
        {name: _array(value) for name, value in content.get("outputs", {}).items()},
        content["in_distribution"],
        tuple(content["reasons"]),
        content["scores"],
        content["percentiles"],
        content.get("keeps_contract"),
    )


def _tensors(answer: httpx.Response) -> Arrays:
    """Outputs of the Open Inference Protocol, binary or not."""
    length = answer.headers.get(oip.JSON_LENGTH)
    place = len(answer.content) if length is None else int(length)
    found = {}
    for output in json.loads(answer.content[:place])["outputs"]:
        dtype = np.dtype(oip.DATATYPES[output["datatype"]])
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            value = np.asarray(output["data"], dtype)
        else:
            value = np.frombuffer(answer.content, dtype, size // dtype.itemsize, place)
            place += size
        found[output["name"]] = value.reshape(output["shape"])
    return found
