"""`save_pretrained`, `from_pretrained` and `push_to_hub` of a composed model, as users of transformers know them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import HfApi, snapshot_download
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from calm_graph.declare.description import read_description
from calm_graph.errors import CheckpointError
from calm_graph.model.checkpoint import put_tensors, read_tensors, save_composition
from registry import ModelCard, Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from calm_graph.augmenters.onnx_session import OnnxSettings
    from calm_graph.model.composed import ComposedModel

    _Base = PreTrainedModel
else:
    _Base = object

_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")
# What AutoModelForCausalLM hands to every class; none of it changes what is loaded here.
_IGNORED = ("config", "_from_auto", "adapter_kwargs", "trust_remote_code", "subfolder", "_commit_hash")


class PretrainedMixin(_Base):
    """Overrides of `PreTrainedModel`, which would save and load the frozen weights as well."""

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Write the composition: its trained parameters only, with everything needed to load it again.

        Args:
            save_directory: The folder; what else is in it is left alone.
            kwargs: `push_to_hub` and its arguments; other arguments of transformers do not apply.
        """
        save_composition(_composed(self), Path(save_directory))
        if kwargs.pop("push_to_hub", False):
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the composition (never the frozen models) to the hub.

        Args:
            repo_id: `name` or `organisation/name`; made if it does not exist.
            commit_message: Of the commit.
            private: Whether a new repository is private.
            token: Of the hub; None takes the one of `hf auth login`.
            revision: Branch.
            create_pr: Whether to open a pull request instead.

        Returns:
            Address of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            save_composition(_composed(self), Path(folder) / "composition")
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=Path(folder) / "composition",
                commit_message=commit_message or f"Upload composition {_composed(self).plan.composition.name}",
                revision=revision,
                create_pr=create_pr,
            )
        return str(commit.commit_url)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        registry: Registry | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        exports: Iterable[str | os.PathLike[str]] = (),
        remotes: Mapping[str, str | ModelCard] | None = None,
        onnx: OnnxSettings | None = None,
        **kwargs: Any,
    ) -> ComposedModel:
        """Load a composition and the frozen models it was made for.

        Args:
            pretrained_model_name_or_path: A folder, an id on the hub, or an address in a bucket (`s3://...`).
            registry: Where the frozen models are looked up; models it does not know are taken from the cards in the
                checkpoint. None is the default registry.
            dtype: Of the frozen weights; None or "auto" keeps what their files hold.
            device_map: One device for everything, or "auto".
            exports: Folders that `calm-graph export` wrote; each runs in place of the augmenter it was made from.
            remotes: Augmenter -> address (`https://host:port`) or card of the service that runs it in place of this
                machine. The key of an address is in the variable CALM_GRAPH_REMOTE_KEY; a card says where its own is.
            onnx: Threads and providers of ONNX Runtime; None: the CPU, as many threads as torch.
            kwargs: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only` for the hub.

        Returns:
            The model in eval mode.

        Raises:
            CheckpointError: It is damaged, newer than this version, or was made for other frozen models.
            TypeError: An argument that does not apply to a composition.
        """
        from calm_graph.model.restore import build_from_description

        hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        for name in _IGNORED:
            kwargs.pop(name, None)
        if kwargs:
            raise TypeError(f"from_pretrained() got {sorted(kwargs)}, which do not apply to a composition")
        device = _device(device_map)
        folder = Path(pretrained_model_name_or_path)
        if "://" in str(pretrained_model_name_or_path):
            folder = _copy_here(str(pretrained_model_name_or_path))
        elif not folder.is_dir():
            folder = _download(str(pretrained_model_name_or_path), hub)
        description = read_description(folder)
        tensors = read_tensors(folder, description)
        model = build_from_description(
            description,
            registry=registry,
            dtype=_dtype(dtype),
            attachment_dtype=next(iter(tensors.values())).dtype if tensors else torch.float32,
            exports=[Path(export) for export in exports],
            remotes=remotes,
            onnx=onnx,
            where=str(folder),
        )
        put_tensors(model, tensors, where=str(folder))
        if (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model if device is None else torch.nn.Module.to(model, device)

    def load_composition_weights(self, folder: str | os.PathLike[str]) -> None:
        """Take the trained parameters of a checkpoint of the same composition.

        Args:
            folder: The checkpoint.
        """
        folder = Path(folder)
        put_tensors(_composed(self), read_tensors(folder, read_description(folder)), where=str(folder))


def _composed(model: PretrainedMixin) -> ComposedModel:
    return cast("ComposedModel", model)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"dtype: got {dtype!r}; give a torch.dtype, its name such as 'bfloat16', or 'auto'")
    return found


def _device(device_map: str | torch.device | dict[str, Any] | None) -> torch.device | None:
    if isinstance(device_map, dict):
        if device_map.keys() != {""}:
            raise TypeError(f"device_map: got {device_map}, but a composition is on one device; name it, or use 'auto'")
        return _device(device_map[""])
    if device_map is None:
        return None
    if device_map == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device(device_map)


def _copy_here(uri: str) -> Path:
    from pyarrow.fs import FileSelector, FileSystem, FileType, copy_files

    folder = Path(tempfile.mkdtemp(prefix="calm-graph-"))
    try:
        files, root = FileSystem.from_uri(uri)
        for info in files.get_file_info(FileSelector(root)):
            if info.type == FileType.File:
                copy_files(info.path, str(folder / info.base_name), source_filesystem=files)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{uri}: cannot be read ({error}); check the address and your rights") from None
    return folder


def _download(repo_id: str, hub: dict[str, Any]) -> Path:
    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.safetensors", "*.json", "*.jinja"], **hub))
    except Exception as error:  # network, name, permission: each has its own class, and all end the same way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise CheckpointError(
            f"{repo_id!r} is no folder here, and the hub did not give it ({type(error).__name__}: {reason}); "
            "check the path, or the name on the hub and the network"
        ) from error
