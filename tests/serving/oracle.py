"""A real Triton Inference Server with what `kerasvae deploy --server triton` lays out, for tests.

Run by the Python of an environment of its own, which has `nvidia-pytriton`, `numpy<2` and `onnxruntime`; that release
is old and is for loopback alone. Of pytriton the server alone is used: its own Python side asks for another standard
library than the one that its backend brings. That Triton has no backend but Python: in each `config.pbtxt` the name of
the backend is changed, and nothing else, and a few lines of Python run the graph that lies there. Arguments: the
repository, folder to work in, HTTP port, gRPC port.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

MODEL = """
import sys
sys.path.insert(0, {packages!r})
from pathlib import Path
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        graph = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {{name: pb.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}}
        found = self.session.run(self.outputs, given)
        wanted = set(request.requested_output_names())
        return pb.InferenceResponse(
            [pb.Tensor(name, value) for name, value in zip(self.outputs, found) if name in wanted]
        )
"""


def main(repository: str, folder: str, http_port: str, grpc_port: str) -> None:
    packages = sysconfig.get_paths()["purelib"]
    configurations = sorted(Path(repository).glob("*/config.pbtxt"))
    for path in configurations:
        text = path.read_text()
        assert text.count('backend: "onnxruntime"') == 1, text
        path.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
        for graph in path.parent.glob("*/model.onnx"):
            (graph.parent / "model.py").write_text(MODEL.format(packages=packages))
    home = Path(importlib.util.find_spec("pytriton").submodule_search_locations[0]) / "tritonserver"
    backends = Path(folder) / "backends"
    shutil.copytree(home / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2(home / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    libraries = [home.parents[1] / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    environment = os.environ | {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    call = [
        str(home / "bin" / "tritonserver"), f"--model-repository={repository}",
        f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={http_port}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}", "--allow-metrics=false",
        "--model-control-mode=explicit", "--log-verbose=0",
        *(f"--load-model={path.parent.name}" for path in configurations),
    ]  # fmt: skip
    os.execve(call[0], call, environment)


if __name__ == "__main__":
    main(*sys.argv[1:])
