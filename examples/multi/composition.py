"""SmolLM2 reads Gemma 3 (140 languages) and Qwen2.5-Coder (code) at the same layers; their outputs are summed."""

from __future__ import annotations

from calm_graph.declare.composition import Composition
from examples.code.composition import composition as code
from examples.low_resource.composition import composition as low_resource

composition = Composition(
    name="multi", anchor="smollm2-135m-instruct", augmenters=[*low_resource.augmenters, *code.augmenters]
)
