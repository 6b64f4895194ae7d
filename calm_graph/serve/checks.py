"""What can be told of a deployment before anything is started: its checkpoints, names and keys, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from calm_graph.declare.composition import Composition
from calm_graph.declare.description import DESCRIPTION, check_files, read_description
from calm_graph.errors import CalmGraphError, CheckpointError, DeclarationError, Problem
from calm_graph.http.auth import read_keys
from calm_graph.serve.settings import ServeSettings

_HUB_S = 5.0


@dataclass(frozen=True, slots=True)
class _Served:
    """One checkpoint, as far as its description tells.

    Args:
        place: In the settings.
        name: What requests call it.
        anchor: Name of its anchor.
        models: Names of its frozen models.
    """

    place: str
    name: str
    anchor: str
    models: frozenset[str]


def check_settings(settings: ServeSettings) -> None:
    """Refuse a deployment whose engines could not start, in place of starting them again and again.

    Frozen models are not looked at: they may be where the engines will be, and to compare them takes time. A checkpoint
    in a bucket is left to the engines too.

    Args:
        settings: Of the deployment; folders are those of this machine.

    Raises:
        DeclarationError: A checkpoint is not there, damaged or newer than this version; names are given twice or are of
            nothing that is served; a folder or the keys cannot be read. All of it is listed.
    """
    problems: list[Problem] = []
    served = []
    for index, (name, checkpoint) in enumerate(settings.named_checkpoints):
        place = f"settings.checkpoints[{index}]"
        if "://" in checkpoint:
            continue
        try:
            served.append(_describe(place, name, checkpoint))
        except DeclarationError as error:
            problems += [Problem(place, str(problem)) for problem in error.problems]
        except CheckpointError as error:
            problems.append(Problem(place, str(error)))
    problems += _wrong_together(served)
    if len(served) == len(settings.checkpoints):
        problems += _unknown_names(settings, served)
    for field, folders in (("registries", settings.registries), ("exports", settings.exports)):
        problems += [
            Problem(f"settings.{field}[{index}]", f"{folder}: there is no such folder")
            for index, folder in enumerate(folders)
            if "://" not in folder and not Path(folder).is_dir()
        ]
    try:
        read_keys(settings.http)
    except CalmGraphError as error:
        problems.append(Problem("settings.http", str(error)))
    if problems:
        raise DeclarationError(problems, where="settings")


def _describe(place: str, name: str | None, checkpoint: str) -> _Served:
    folder = Path(checkpoint)
    description = check_files(folder) if folder.is_dir() else read_description(_from_hub(checkpoint))
    composition = Composition.parse(description["composition"], where=checkpoint)
    return _Served(place, name or composition.name, composition.anchor, frozenset(description["models"]))


def _from_hub(checkpoint: str) -> Path:
    """Return a folder with the description of a checkpoint on the hub."""
    if Path(checkpoint).is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") > 1:
        raise CheckpointError(f"{checkpoint}: there is no such folder on this machine")
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(checkpoint, DESCRIPTION, local_files_only=True)).parent
        except LocalEntryNotFoundError:
            # It fails at once where there is no network; the download would try for half a minute.
            HfApi().model_info(checkpoint, timeout=_HUB_S)
            return Path(hf_hub_download(checkpoint, DESCRIPTION)).parent
    except Exception as error:  # network, name, permission: each has its own class, and all end the same way
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise CheckpointError(
            f"{checkpoint!r} is no folder here, and the hub did not give it ({type(error).__name__}: {reason}); "
            "check the path, or the name on the hub and the network"
        ) from error


def _wrong_together(served: Sequence[_Served]) -> Iterator[Problem]:
    for index, each in enumerate(served):
        if any(each.name == other.name for other in served[:index]):
            advice = "give it another name, as in NAME=CHECKPOINT"
            yield Problem(each.place, f"is called {each.name!r}, as one before it; {advice}")
        if each.anchor != served[0].anchor:
            yield Problem(
                each.place,
                f"its anchor is {each.anchor!r}, but an engine has one for all, here {served[0].anchor!r}; "
                "serve it by an engine of its own",
            )


def _unknown_names(settings: ServeSettings, served: Sequence[_Served]) -> Iterator[Problem]:
    names = [each.name for each in served]
    for name in settings.selectors:
        if name not in names:
            yield Problem(f"settings.selectors[{name!r}]", f"the compositions are {', '.join(map(repr, names))}")
    models = sorted(frozenset[str]().union(*(each.models for each in served)))
    for name in settings.named_remotes:
        if name not in models:
            yield Problem(f"settings.remotes[{name!r}]", f"the compositions read {', '.join(map(repr, models))}")
