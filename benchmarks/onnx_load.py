"""A fresh process up to the first state: ONNX Runtime takes at most half of the time of torch and transformers."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks._onnx import MODELS, folder, layers_of
from benchmarks.bar import Bar

BAR = 0.5
ROUNDS = 3

_TORCH = """
import torch
from calm_graph.augmenters.torch_backend import TorchBackend
from registry import registry
from registry.weights import load_body
torch.set_num_threads(2)
body = load_body(registry.get(sys.argv[1]), int(sys.argv[2]) + 1, dtype=torch.float32)
backend = TorchBackend(body, name="", context_length=None)
ids = torch.tensor([[5, 6, 7]])
taps = frozenset([int(sys.argv[2])])
with torch.inference_mode():
    backend.read_tokens(ids, ids > 0, known_at_BS=ids, taps=taps, writes={})
"""
_ONNX = """
import numpy as np
from calm_graph.augmenters.onnx_session import OnnxSession, OnnxSettings, read_export
session = OnnxSession(read_export(sys.argv[1]), OnnxSettings(num_threads=2))
ids = np.array([[5, 6, 7]])
inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(3)[None]}
session.run({**inputs, **session.empty_past(1)}, [session.state(int(sys.argv[2]))])
"""


def measure() -> Bar:
    """Start both in turns; the value is the largest ratio of the int8 export over the models."""
    ratios = []
    for name in MODELS:
        last = str(max(layers_of(name)))
        commands = {"torch": (_TORCH, name, last)}
        commands |= {each: (_ONNX, str(folder(name, each)), last) for each in ("fp32", "int8", "int4")}
        seconds = dict.fromkeys(commands, float("inf"))
        for _ in range(ROUNDS):
            for runtime, command in commands.items():
                seconds[runtime] = min(seconds[runtime], _seconds(*command))
        shown = "  ".join(f"{runtime} {each:.2f} s" for runtime, each in seconds.items())
        print(f"{name}: {shown}", flush=True)
        ratios.append(seconds["int8"] / seconds["torch"])
    value = round(max(ratios), 2)
    return Bar(name="onnx_load", value=value, bar=BAR, holds=value <= BAR, unit="of torch (int8)")


def _seconds(script: str, *arguments: str) -> float:
    start = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", f"import sys\n{script}", *arguments], check=True, env=environment)
    return time.perf_counter() - start
