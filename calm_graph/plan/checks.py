"""What can be wrong with a declared model, checked against its card."""

from __future__ import annotations

import difflib
import math
import re

from calm_graph.declare.composition import Augmenter, Composition, Runtime
from calm_graph.errors import Problem
from calm_graph.plan.parts import Edge
from registry import ModelCard, Registry
from registry.errors import RegistryError
from registry.layouts import LAYOUTS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FIELD = re.compile(r"\{\w*\}")


def look_up(name: str, registry: Registry, path: str) -> tuple[ModelCard | None, tuple[Problem, ...]]:
    """Return the card of this name with its facts, or why there is none."""
    try:
        return registry.get(name), ()
    except RegistryError as error:
        return None, (Problem(path, str(error)),)


def at_runtime(
    card: ModelCard, runtime: Runtime | None, registry: Registry, path: str
) -> tuple[ModelCard | None, tuple[Problem, ...]]:
    """Return the card to run in place of `card`: itself, or its export, which goes by the same name then."""
    if runtime is None or runtime == card.runtime:
        return card, ()
    if card.runtime == "remote":
        message = f"got {runtime!r}, but {card.name!r} is run by the service {card.location}; leave runtime out"
        return None, (Problem(path, message),)
    if runtime == "remote":
        advice = "register a card with source='remote:https://...' under this name, or name the service when loading"
        return None, (Problem(path, f"got 'remote', but {card.name!r} is a model of this machine; {advice}"),)
    if runtime == "torch":
        origin = f"of {card.onnx.origin!r}; name that" if card.onnx is not None else "of another model; name that one"
        return None, (Problem(path, f"got 'torch', but {card.name!r} is an ONNX export {origin}"),)
    exports = registry.exports_of(card.name)
    if len(exports) == 1:
        return exports[0].model_copy(update={"name": card.name}), ()
    if exports:
        names = ", ".join(repr(each.name) for each in exports)
        return None, (Problem(path, f"got 'onnx', but {card.name!r} has several exports: {names}; name one of them"),)
    advice = f"make one (calm-graph export {card.name} --layers ... --out DIR) and add it (--registry DIR)"
    return None, (Problem(path, f"got 'onnx', but the registry has no export of {card.name!r}; {advice}"),)


def check_layers(card: ModelCard, edge: Edge) -> tuple[Problem, ...]:
    """Return the attachments that read a layer which an ONNX export or a service does not give."""
    if card.onnx is not None:
        layers, who, advice = card.onnx.layers, f"the ONNX export of {card.onnx.origin!r} has", "export again"
    elif card.remote is not None and card.remote.layers is not None:
        layers, who, advice = card.remote.layers, f"the service {card.location} gives", "ask its owner for more"
    else:
        return ()
    given = ", ".join(map(str, layers))
    return tuple(
        Problem(
            found.path,
            f"reads layer {found.augmenter_layer}, but {who} layers {given}; read one of them, or {advice}",
        )
        for found in edge.attachments
        if found.augmenter_layer not in layers
    )


def check_name(composition: Composition, path: str) -> tuple[Problem, ...]:
    """Return what is wrong with the composition's own name; it becomes part of parameter, file and model names."""
    if _NAME.fullmatch(composition.name):
        return ()
    allowed = "a name is letters, digits, '.', '_' and '-', beginning with a letter or digit"
    return (Problem(f"{path}.name", f"got {composition.name!r}, but {allowed}"),)


def check_facts(card: ModelCard, facts: tuple[str, ...], path: str) -> tuple[Problem, ...]:
    """Return a problem that names the facts which the plan needs and the card does not give."""
    missing = [fact for fact in facts if getattr(card, fact) is None]
    if not missing:
        return ()
    given = ", ".join(f"{fact}=..." for fact in missing)
    names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
    message = (
        f"the card of {card.name!r} does not give {names}, and its files ({card.source}) are not "
        f"here to be read; write {given} on the card, or fetch the model"
    )
    return (Problem(path, message),)


def check_anchor(card: ModelCard, path: str) -> tuple[Problem, ...]:
    """Return why this model cannot be an anchor."""
    who = f"got {card.name!r}, which"
    if card.architecture == "calm_graph":
        advice = "name its own anchor and augmenters here, or read it as an augmenter of another anchor"
        return (Problem(path, f"{who} is a trained composition; {advice}"),)
    if card.modality != "text":
        return (Problem(path, f"{who} reads {card.modality}, but an anchor is a causal language model of text"),)
    if card.causal is False:
        advice = "its positions see later text; use it as an augmenter with reading='prompt'"
        return (Problem(path, f"{who} is not causal, but an anchor is a causal language model; {advice}"),)
    problems = check_facts(card, ("num_layers", "hidden_size", "causal"), path)
    if card.runtime != "torch":
        message = f"{who} runs in {card.runtime}, but an anchor runs in torch: attachments are trained through it"
        problems += (Problem(path, message),)
    return problems


def check_augmenter(augmenter: Augmenter, card: ModelCard | None, path: str) -> tuple[Problem, ...]:
    """Return what is wrong with an augmenter apart from its layers.

    Args:
        augmenter: What was declared.
        card: The model whose states are read; None when it is unknown, which is reported elsewhere.
        path: Where it was declared: `composition.augmenters[0]`.
    """
    problems = [*_check_template(augmenter.prompt_template, f"{path}.prompt_template")]
    if not math.isfinite(augmenter.scale):
        problems.append(Problem(f"{path}.scale", f"got {augmenter.scale}, but a finite number is needed; 0 is off"))
    if card is None:
        return tuple(problems)
    follows = augmenter.reading == "stream" or augmenter.prompt_visibility == "causal"
    needs_causal = ("causal",) if follows and card.modality == "text" else ()
    problems += check_facts(card, ("num_layers", "hidden_size", *needs_causal), f"{path}.name")
    if card.onnx is not None and card.onnx.reading == "prompt" and card.causal and augmenter.reading == "stream":
        advice = "use reading='prompt', or export again with --reading stream"
        problems.append(
            Problem(f"{path}.reading", f"got 'stream', but {card.name!r} was exported for prompts; {advice}")
        )
    if card.runtime == "remote" and augmenter.reading == "stream":
        what = f"got 'stream', but {card.name!r} is run by a service, which reads prompts only; use reading='prompt'"
        problems.append(Problem(f"{path}.reading", what))
    if augmenter.open_words == "read":
        problems += _check_open_words(augmenter, card, f"{path}.open_words")
    if card.modality != "text":
        problems += _check_other_modality(augmenter, card, path)
    elif card.causal is False:
        problems += _check_bidirectional(augmenter, path)
    return tuple(problems)


def _check_open_words(augmenter: Augmenter, card: ModelCard, path: str) -> tuple[Problem, ...]:
    """What is withdrawn is hidden by a mask of pairs of tokens, which not every model can be given."""
    layout = LAYOUTS.get(str(card.architecture))
    if augmenter.reading == "prompt":
        reason = "a prompt is whole, so it has no open word"
    elif card.runtime != "torch":
        reason = f"{augmenter.key!r} runs in {card.runtime}, and withdraws nothing"
    elif layout is None or not layout.pairwise_masks:
        reason = f"{augmenter.key!r} is a {card.architecture} model, from which no single token can be hidden"
    else:
        return ()
    return (Problem(path, f"got 'read', but {reason}; use 'wait'"),)


def _check_template(template: str | None, path: str) -> tuple[Problem, ...]:
    if template is None:
        return ()
    fields = _FIELD.findall(template)
    count = fields.count("{prompt}")
    problems = []
    for field in sorted({field for field in fields if field != "{prompt}"}):
        near = "; did you mean {prompt}?" if difflib.get_close_matches(field, ["{prompt}"]) else ""
        problems.append(Problem(path, f"got {field} in {template!r}, but {{prompt}} is the only field{near}"))
    if count > 1 or not (count or problems):
        advice = "write {prompt} once, where the text of the request goes"
        problems.append(Problem(path, f"got {template!r}, which has {{prompt}} {count} times; {advice}"))
    return tuple(problems)


def _check_other_modality(augmenter: Augmenter, card: ModelCard, path: str) -> list[Problem]:
    """An encoder of images or features has inputs of its own, given once; it has no text to follow or to align."""
    what = f"but {augmenter.key!r} reads {card.modality}, not text"
    wrong = {
        "reading": (augmenter.reading == "stream", f"got 'stream', {what}; use reading='prompt'"),
        "prompt_visibility": (augmenter.prompt_visibility == "causal", f"got 'causal', {what}; use 'full'"),
        "prompt_template": (augmenter.prompt_template is not None, f"is given, {what}; leave it out"),
        "positions": (augmenter.positions != "none", f"got {augmenter.positions!r}, {what}; use 'none'"),
    }
    return [Problem(f"{path}.{name}", message) for name, (is_wrong, message) in wrong.items() if is_wrong]


def _check_bidirectional(augmenter: Augmenter, path: str) -> list[Problem]:
    what = f"but {augmenter.key!r} is not causal: each of its states depends on all of its text"
    problems = []
    if augmenter.reading == "stream":
        problems.append(Problem(f"{path}.reading", f"got 'stream', {what}; use reading='prompt'"))
    if augmenter.prompt_visibility == "causal":
        problems.append(Problem(f"{path}.prompt_visibility", f"got 'causal', {what}; use 'full'"))
    return problems


def check_heads(num_heads: int, width: int, anchor: str, positions: str, path: str) -> tuple[Problem, ...]:
    """Return why an attachment cannot have this many heads."""
    if num_heads < 1:
        return (Problem(path, f"got {num_heads}, but an attachment has 1 head or more"),)
    if width % num_heads:
        divisors = [heads for heads in range(1, width + 1) if width % heads == 0]
        fits = sorted(sorted(divisors, key=lambda heads: abs(heads - num_heads))[:3])
        reason = f"got {num_heads}, which does not divide the width {width} of {anchor!r}"
        return (Problem(path, f"{reason}; {', '.join(map(str, fits))} do"),)
    if positions == "rotary" and (width // num_heads) % 2:
        head_dim = width // num_heads
        return (Problem(path, f"got {num_heads}: heads of width {head_dim}, but rotary positions need an even width"),)
    return ()
