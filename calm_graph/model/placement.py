"""Which device each frozen model is on; attachments are where the model is that they write into."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from calm_graph.errors import InputError
from calm_graph.plan.parts import Plan


def devices(plan: Plan, placement: Mapping[str, str]) -> dict[str, torch.device]:
    """Read a placement, and try its devices.

    Args:
        plan: What runs.
        placement: Name of a model -> a device that torch knows; a model that is not named goes where the anchor does,
            and the anchor, if it is not named, to the CPU.

    Returns:
        Run name -> device.

    Raises:
        InputError: A name is no model of the plan, or this machine has no such device.
    """
    names = sorted({run.card.name for run in plan.runs})
    found = {}
    for name, device in placement.items():
        if name not in names:
            raise InputError(f"placement: got {name!r}, but the models of this composition are {names}")
        try:
            found[name] = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
            raise InputError(f"placement[{name!r}]: got {device!r}: {str(error).partition(chr(10))[0]}") from None
    default = found.get(plan.anchor.card.name, torch.device("cpu"))
    return {run.name: found.get(run.card.name, default) for run in plan.runs}
