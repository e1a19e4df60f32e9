"""Would the suite of the Open Inference Protocol notice? Servers that break one clause each."""

from __future__ import annotations

import inspect
import sys

import pytest

from tests.serving import test_open_inference as suite
from tests.serving.servers import Running

START = """
import sys
from kerasvae_serving import open_inference as oip, app, server
from kerasvae_serving.settings import Settings
{patch}
server.serve(sys.argv[1:2], Settings(port=0, grpc_port=0, drain=0))
"""
RESPOND = """
real = oip.respond
def respond(request, found, **named):
    {change}
    return real(request, found, **named)
oip.respond = respond
"""
PARSE = """
import dataclasses, numpy as np
real = oip.parse
def parse(body, length, known):
    {change}
    return real(body, length, known)
oip.parse = parse
"""
MUTANTS = {
    "the id is lost": RESPOND.format(change="import dataclasses; request = dataclasses.replace(request, id=None)"),
    "an id is made up": RESPOND.format(
        change="import dataclasses; request = dataclasses.replace(request, id='made up')"
    ),
    "all outputs, whatever is asked": RESPOND.format(
        change="import dataclasses; request = dataclasses.replace(request, outputs=None)"
    ),
    "never binary": RESPOND.format(
        change="import dataclasses; names = request.outputs and dict.fromkeys(request.outputs, False); "
        "request = dataclasses.replace(request, binary=False, outputs=names)"
    ),
    "binary_data_output alone counts": RESPOND.format(
        change="import dataclasses; names = request.outputs and dict.fromkeys(request.outputs); "
        "request = dataclasses.replace(request, outputs=names)"
    ),
    "rows in another order": RESPOND.format(change="found = {name: value[::-1] for name, value in found.items()}"),
    "outputs in double precision": RESPOND.format(
        change="found = {name: value.astype('f8') for name, value in found.items()}"
    ),
    "another model's name": RESPOND.format(change="named['model'] = 'other'"),
    "bytes that are left over are ignored": PARSE.format(
        change="import json; n = len(body) if length is None else int(length); head = json.loads(bytes(body[:n])); "
        "rest = sum(i.get('parameters', {{}}).get('binary_data_size', 0) for i in head['inputs']); "
        "body = body[:n + rest]"
    ),
    "the shape is not looked at": "oip.check_tensors = lambda inputs, known: None",
    "too few numbers are filled up": (
        "import numpy as np\n"
        "oip.tensor_of = lambda name, values, shape, kind: np.resize(np.asarray(values, 'f4'), shape)"
    ),
    "errors are plain text": (
        "from starlette.responses import PlainTextResponse\n"
        "app.refuse = lambda error: PlainTextResponse(str(error), error.http_status)"
    ),
    "errors are 500": "from kerasvae.errors import KerasVAEError, ArgumentError, ServingError\n"
    "ArgumentError.http_status = 500",
    "any version will do": (
        "from kerasvae_serving.repository import Repository\n"
        "real = Repository.get\nRepository.get = lambda self, name, version=None: real(self, name)"
    ),
    "metadata without the batch axis": (
        "import orjson\nreal = app.as_json\n"
        "def as_json(content, *rest):\n"
        "    words = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY).replace(b'[-1,', b'[')\n"
        "    return real(orjson.loads(words), *rest)\n"
        "app.as_json = as_json"
    ),
    "no extensions": "app.EXTENSIONS = ()",
    "ready without a model": (
        "from kerasvae_serving.app import App, as_json\n"
        "async def model_ready(self, request): return as_json({'ready': True})\n"
        "App._model_ready = model_ready"
    ),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(bundles, engine, prepared, name):
    command = [sys.executable, "-c", START.format(patch=MUTANTS[name]), str(bundles)]
    with Running.of(command) as server:
        image = prepared[:2]
        target = suite.Target(server.url, "blobs", "1", image, engine.encode(image))
        failed = []
        for test, function in inspect.getmembers(suite, inspect.isfunction):
            needed = list(inspect.signature(function).parameters)
            if not test.startswith("test_") or needed not in (["target"], ["target", "place"]):
                continue
            try:
                function(target, *[""] * (len(needed) - 1))
            except Exception:
                failed.append(test)
        assert failed, "no test of the suite noticed"
        assert len(failed) < 30, "it does not work at all"
