"""The side of a peer: one command a line in, one line of JSON out, so that ours and theirs can take turns.

    python peer.py torch|openvino ARRAYS.npz SECONDS

The arrays: `image` (n, x, y, z), `z` (n, d), and for PyTorch the Keras weights as `encoder_0` …, `decoder_0` …; for
OpenVINO `encoder` and `decoder` are paths of ONNX graphs. A command is `check`, which answers `parameters` or `mean`
and `reconstruction`, or PART LAYOUT with encoder or decoder and plain or channels_last, or float32 or bfloat16, which
answers volumes a second.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

THREADS = 2


def rate(call: Callable[[], Any], volumes: int, seconds: float) -> float:
    """Volumes a second, over at least `seconds`; one call goes before."""
    call()
    calls, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        call()
        calls += 1
    return calls * volumes / passed


def torch_peer(arrays: dict[str, np.ndarray]) -> tuple[dict[str, Callable[[], Any]], Callable[[], dict[str, Any]]]:
    """The same network as a user of PyTorch writes it.

    Padding is one voxel on the other side than in Keras: the networks are mirror images of each other, and so are
    kernels and images here, all three axes turned around.
    """
    import torch
    from torch import nn

    torch.set_num_threads(THREADS)

    def weights(part: str) -> list[np.ndarray]:
        names = sorted(
            (name for name in arrays if name.startswith(f"{part}_")), key=lambda name: int(name.split("_")[1])
        )
        return [arrays[name] for name in names]

    def put(layer: nn.Module, kernel: np.ndarray, bias: np.ndarray) -> nn.Module:
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
            layer.bias.copy_(torch.from_numpy(bias))
        return layer

    def conv(kernel: np.ndarray, bias: np.ndarray, stride: int) -> nn.Module:
        turned = kernel[::-1, ::-1, ::-1].transpose(4, 3, 0, 1, 2)
        return put(nn.Conv3d(turned.shape[1], turned.shape[0], 3, stride, padding=1), turned, bias)

    def transposed(kernel: np.ndarray, bias: np.ndarray) -> nn.Module:
        turned = kernel[::-1, ::-1, ::-1].transpose(4, 3, 0, 1, 2)
        layer = nn.ConvTranspose3d(turned.shape[0], turned.shape[1], 3, 2, padding=1, output_padding=1)
        return put(layer, turned, bias)

    def norm(gamma: np.ndarray, beta: np.ndarray) -> nn.Module:
        return put(nn.GroupNorm(max(1, len(gamma) // 8), len(gamma), eps=1e-3), gamma, beta)

    w = weights("encoder")
    layers: list[nn.Module] = []
    for kernel, bias, gamma, beta in (w[i : i + 4] for i in range(0, len(w) - 2, 4)):
        layers += [conv(kernel, bias, 2), norm(gamma, beta), nn.SiLU()]
    small = arrays["image"].shape[1] // 8
    channels = len(w[-4])
    kernel = w[-2].reshape(small, small, small, channels, -1)[::-1, ::-1, ::-1]
    flat = kernel.transpose(4, 3, 0, 1, 2).reshape(kernel.shape[-1], -1)
    encoder = nn.Sequential(*layers, nn.Flatten(), put(nn.Linear(flat.shape[1], flat.shape[0]), flat, w[-1])).eval()

    w = weights("decoder")
    channels = len(w[2])
    kernel = w[0].reshape(-1, small, small, small, channels)[:, ::-1, ::-1, ::-1].transpose(4, 1, 2, 3, 0)
    bias = w[1].reshape(small, small, small, channels)[::-1, ::-1, ::-1].transpose(3, 0, 1, 2)
    first = put(nn.Linear(len(w[0]), len(w[1])), kernel.reshape(-1, len(w[0])), bias.reshape(-1).copy())
    layers = [first, nn.Unflatten(1, (channels, small, small, small))]
    for gamma, beta, kernel, bias in (w[i : i + 4] for i in range(2, len(w) - 2, 4)):
        layers += [norm(gamma, beta), nn.SiLU(), transposed(kernel, bias)]
    decoder = nn.Sequential(*layers, nn.SiLU(), conv(w[-2], w[-1], 1)).eval()

    image, z = torch.from_numpy(arrays["image"])[:, None], torch.from_numpy(arrays["z"])
    last = torch.channels_last_3d

    def call(network: nn.Module, value: torch.Tensor) -> Callable[[], Any]:
        def once() -> Any:
            with torch.inference_mode():
                return network(value)

        return once

    import copy

    calls = {
        "encoder plain": call(encoder, image),
        "decoder plain": call(decoder, z),
        "encoder channels_last": call(copy.deepcopy(encoder).to(memory_format=last), image.to(memory_format=last)),
        "decoder channels_last": call(copy.deepcopy(decoder).to(memory_format=last), z),
    }

    def check() -> dict[str, Any]:
        with torch.inference_mode():
            parameters = encoder(image.flip((2, 3, 4)))
            made = decoder(z).flip((2, 3, 4))[:, 0]
        return {"parameters": parameters.numpy(), "reconstruction": made.numpy()}

    return calls, check


def openvino_peer(arrays: dict[str, np.ndarray]) -> tuple[dict[str, Callable[[], Any]], Callable[[], dict[str, Any]]]:
    """The exported graphs in OpenVINO, in two precisions."""
    import openvino

    core, calls, outputs = openvino.Core(), {}, {}
    for precision in ("float32", "bfloat16"):
        for part, value in (("encoder", arrays["image"]), ("decoder", arrays["z"])):
            hints = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}
            hints |= {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
            request = core.compile_model(str(arrays[part]), "CPU", hints).create_infer_request()
            calls[f"{part} {precision}"] = lambda request=request, value=value: request.infer([value])
            outputs[part, precision] = calls[f"{part} {precision}"]

    def check() -> dict[str, Any]:
        found = {}
        for (part, precision), call in outputs.items():
            name = {"encoder": "mean", "decoder": "reconstruction"}[part]
            found[f"{name}_{precision}"] = np.array(call()[name])
        return found

    return calls, check


def main() -> None:
    kind, path, seconds = sys.argv[1:]
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    calls, check = {"torch": torch_peer, "openvino": openvino_peer}[kind](arrays)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "check":
            found = path.replace(".npz", f"-{kind}.npz")
            np.savez(found, **check())
            print(json.dumps(found), flush=True)
        else:
            print(json.dumps(rate(calls[command], len(arrays["image"]), float(seconds))), flush=True)


if __name__ == "__main__":
    main()
