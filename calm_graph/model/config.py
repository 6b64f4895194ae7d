"""What transformers wants to know of a composed model."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class CalmGraphConfig(PreTrainedConfig):
    """Config of a composed model.

    Generation, caches and heads take vocabulary, special tokens and layer shapes from `get_text_config()`, which is
    the anchor's.

    Args:
        anchor_config: The anchor's own config.
    """

    model_type = "calm_graph"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "anchor_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    anchor_config: dict[str, Any] | PreTrainedConfig | None = None

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the anchor's text config."""
        if not isinstance(self.anchor_config, PreTrainedConfig):  # while the base class is still initialising
            return self
        config: PreTrainedConfig = self.anchor_config.get_text_config(decoder=decoder, encoder=encoder)
        return config
