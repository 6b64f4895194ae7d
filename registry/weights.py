"""From a card to a frozen torch module: safetensors or GGUF, checked against the card, nothing else executed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry import layouts
from registry.card import FACTS, ModelCard
from registry.errors import FactMismatchError, FingerprintError, WeightsError
from registry.fingerprint import fingerprint
from registry.remote import described, fetch_tokenizer
from registry.sources import local_path, mirror_folder, read_safetensors_header

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.distributed.configuration_utils import DistributedConfig

_DOWNLOAD = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
# What transformers lets out when files are damaged, foreign, or need a package that is not installed.
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, struct.error)
_COMPARED = tuple(fact for fact in FACTS if fact != "num_parameters")  # a config does not say how many


def find_files(card: ModelCard) -> Path:
    """Return the folder (or the GGUF file) with a card's model, downloading from the hub when it is not here yet.

    Only safetensors, JSON and tokenizer files are ever downloaded (and Python files, if the card trusts them). Of a
    model that a service runs there are only the tokenizer and the facts.

    Raises:
        RemoteError: the service cannot be used.
        WeightsError: there are no such files, they are incomplete, or they are in a format that could run code.
    """
    if card.scheme == "remote":
        return fetch_tokenizer(card)
    path = local_path(card)
    if card.scheme == "hub" and (path is None or not any(path.glob("*.safetensors"))):
        path = _download(card)
    if path is None:
        where = card.location if card.scheme != "embedded" else f"the package's registry/embedded/{card.location}"
        wanted = "no such file" if card.scheme == "gguf" else "no config.json there"
        raise WeightsError(f"card {card.name!r}: {where}: {wanted}; correct the card's source ({card.source})")
    if path.is_dir() and card.runtime == "torch":  # the files of an ONNX export are checked by their digests
        _check_folder(card, path)
    return path


def identity(card: ModelCard) -> str:
    """Return the fingerprint of the model that a card stands for; an ONNX export stands for the model it came from.

    A service says itself what it runs.

    Raises:
        WeightsError: there are no such files, or the export does not say what it came from.
    """
    if card.runtime == "torch":
        return fingerprint(find_files(card))
    if card.runtime == "remote":
        card = described(card)
    if card.fingerprint is None:
        raise WeightsError(f"card {card.name!r}: it does not say which model it was exported from; export it again")
    return card.fingerprint


def load_config(card: ModelCard) -> PreTrainedConfig:
    """Read the transformers config of a card's model, checked against the card's facts.

    Raises:
        FactMismatchError: some facts differ; all of them are named.
        WeightsError: there is no config, or transformers cannot use it.
    """
    return _load_config(card, find_files(card))


def load_tokenizer(card: ModelCard) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a card's model.

    Raises:
        WeightsError: the model has no tokenizer that transformers can load.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = find_files(card)
    # AutoTokenizer puts the pre-tokeniser of some architectures (Qwen 2, ...) in place of the one in tokenizer.json,
    # even where the folder says that tokenizer.json is all there is.
    is_generic = path.is_dir() and _tokenizer_class(path) in ("TokenizersBackend", "PreTrainedTokenizerFast")
    factory: Any = PreTrainedTokenizerFast if is_generic else AutoTokenizer
    with quiet():
        try:
            tokenizer: PreTrainedTokenizerBase = factory.from_pretrained(
                **_where(path), trust_remote_code=card.trust_remote_code
            )
        except Exception as error:  # the tokenizers package raises nothing more precise
            raise WeightsError(f"card {card.name!r}: no usable tokenizer in {path}: {error}") from error
    return tokenizer


def load_causal_lm(card: ModelCard, *, dtype: torch.dtype | None = None, num_shards: int = 1) -> PreTrainedModel:
    """Load a whole causal language model, frozen and in eval mode.

    Args:
        card: a causal text model; of a multimodal wrapper only the text model is loaded.
        dtype: of the floating-point weights; by default what the files hold.
        num_shards: how many processes hold a part of each weight (FSDP2). Each must call this, and reads its part only.

    Raises:
        FactMismatchError: the card's facts differ from the config.
        FingerprintError: the files are not the ones that the card records.
        WeightsError: weights are missing or not readable.
    """
    from transformers import AutoModelForCausalLM

    path = find_files(card)
    config = _load_config(card, path)
    if layouts.is_causal(config.to_dict()) is False:
        raise WeightsError(f"card {card.name!r}: {config.model_type} is an encoder, not a causal language model")
    return _once(
        (AutoModelForCausalLM, card.model_dump_json(), dtype, num_shards),
        lambda: _load(AutoModelForCausalLM, card, path, config, dtype, headless=False, num_shards=num_shards),
    )


def load_body(
    card: ModelCard, num_layers: int | None = None, *, dtype: torch.dtype | None = None, num_shards: int = 1
) -> PreTrainedModel:
    """Load the base model of a card cut after its first blocks, frozen and in eval mode; the rest is never read.

    Args:
        card: a model of any kind: decoder, text encoder, image or feature encoder.
        num_layers: how many blocks to keep, 1 to all of them; by default all.
        dtype: of the floating-point weights; by default what the files hold.
        num_shards: how many processes hold a part of each weight (FSDP2). Each must call this, and reads its part only.

    Returns:
        A base model (no head); `layouts.blocks` of it has `num_layers` blocks. Its final norm, if any, is kept.

    Raises:
        FactMismatchError: the card's facts differ from the config.
        FingerprintError: the files are not the ones that the card records.
        WeightsError: weights are missing or not readable, or the model does not have that many blocks.
    """
    from transformers import AutoModel

    path = find_files(card)
    config = _load_config(card, path)
    if num_layers is not None:
        try:
            config = layouts.truncated(config, num_layers)
        except ValueError as error:
            raise WeightsError(f"card {card.name!r}: {error}") from error
    return _once(
        (AutoModel, card.model_dump_json(), num_layers, dtype, num_shards),
        lambda: _load(AutoModel, card, path, config, dtype, headless=True, num_shards=num_shards),
    )


@contextmanager
def loaded_once() -> Iterator[None]:
    """Load each frozen model once inside the `with`, however many compositions ask for it: they share its module.

    Yields:
        Nothing.
    """
    token = _LOADED.set({})
    try:
        yield
    finally:
        _LOADED.reset(token)


_LOADED: ContextVar[dict[Hashable, PreTrainedModel] | None] = ContextVar("calm_graph_loaded", default=None)


def _once(key: Hashable, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    loaded = _LOADED.get()
    if loaded is None:
        return load()
    if key not in loaded:
        loaded[key] = load()
    return loaded[key]


def check_facts(card: ModelCard, config: Mapping[str, Any]) -> None:
    """Compare the facts on a card with a config dict.

    A card may promise a shorter context than the config, never a longer one.

    Raises:
        FactMismatchError: names every fact that differs, with both values.
    """
    actual = layouts.facts(config)
    problems = []
    for fact in _COMPARED:
        said, found = getattr(card, fact), actual.get(fact)
        if said is None or found is None or said == found or (fact == "context_length" and said < found):
            continue
        problems.append(f"  {fact}: the card says {said!r}, the config says {found!r}")
    if problems:
        raise FactMismatchError(
            "\n".join([f"card {card.name!r} does not describe the model in {card.source}:", *problems])
        )


def _load_config(card: ModelCard, path: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    with quiet():
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                **_where(path), trust_remote_code=card.trust_remote_code
            )
        except _LOAD_ERRORS as error:
            raise WeightsError(f"card {card.name!r}: transformers cannot use the config in {path}: {error}") from error
    check_facts(card, config.to_dict())
    return config


def _load(
    factory: Any,
    card: ModelCard,
    path: Path,
    config: PreTrainedConfig,
    dtype: torch.dtype | None,
    *,
    headless: bool,
    num_shards: int,
) -> PreTrainedModel:
    if card.fingerprint is not None and (found := fingerprint(path)) != card.fingerprint:
        raise FingerprintError(
            f"card {card.name!r} records {card.fingerprint}, but the files in {path} are {found}; "
            "use the recorded files, or correct the card if the new ones are meant"
        )
    layout = layouts.LAYOUTS.get(config.model_type)
    arguments: dict[str, Any] = dict(layout.load_arguments) if layout and headless else {}
    if layout and layout.inner:
        config = getattr(config, layout.inner)
        arguments["key_mapping"] = dict(layout.key_mapping)
    if path.is_dir():
        arguments["use_safetensors"] = True
    if num_shards > 1:
        if not path.is_dir():
            raise WeightsError(f"card {card.name!r}: {path} is read whole, not by shards; save it as safetensors")
        arguments["distributed_config"] = _shards_of_blocks(factory, config, num_shards)
    with quiet():
        try:
            model, report = factory.from_pretrained(
                **_where(path),
                config=config,
                dtype=dtype or "auto",
                trust_remote_code=card.trust_remote_code,
                output_loading_info=True,
                **arguments,
            )
        except _LOAD_ERRORS as error:
            raise WeightsError(f"card {card.name!r}: cannot load {path}: {error}") from error
    optional = layout.optional_tensors if layout else ()
    missing = sorted(name for name in report["missing_keys"] if not name.endswith(optional or ("\0",)))
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise WeightsError(f"card {card.name!r}: {path} lacks {len(missing)} tensors of {config.model_type}: {shown}")
    if path.is_file():
        _forget_quantization(model)
    if num_shards > 1:
        del model.config.distributed_config  # how this run holds the model is no part of what the model is
        if headless:
            model.set_reshard_after_forward(True)  # else what is no block waits, whole, for a backward that never comes
    frozen: PreTrainedModel = model.requires_grad_(False).eval()
    return frozen


def _shards_of_blocks(factory: Any, config: PreTrainedConfig, num_shards: int) -> DistributedConfig:
    """Shard each block by itself, so that no process ever holds more than one block whole; the rest as one."""
    import torch
    from transformers.distributed.configuration_utils import DistributedConfig

    with torch.device("meta"):
        skeleton = factory.from_config(config)
    blocks = layouts.blocks(skeleton)
    (path,) = (name for name, module in skeleton.named_modules() if module is blocks)
    return DistributedConfig(fsdp_size=num_shards, fsdp_plan={f"{path}.*": "free_full_weight"})


def _forget_quantization(model: Any) -> None:
    """Make a model whose weights were dequantized from GGUF the ordinary model that it now is."""
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None


def _tokenizer_class(folder: Path) -> str | None:
    file = folder / "tokenizer_config.json"
    if not file.is_file() or not (folder / "tokenizer.json").is_file():
        return None
    found: str | None = json.loads(file.read_text("utf-8")).get("tokenizer_class")
    return found


def _where(path: Path) -> dict[str, str]:
    if path.is_dir():
        return {"pretrained_model_name_or_path": str(path)}
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def _check_folder(card: ModelCard, folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        unsafe = [file.name for pattern in _UNSAFE for file in sorted(folder.glob(pattern))]
        if unsafe:
            raise WeightsError(
                f"card {card.name!r}: {folder} has only {', '.join(unsafe)}, and such files can run code when they are "
                "opened; save the model again as safetensors (transformers: model.save_pretrained(folder))"
            )
        raise WeightsError(f"card {card.name!r}: {folder} has no *.safetensors file")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text("utf-8")).get("weight_map", {}).values())
        absent = sorted(wanted - {file.name for file in files})
        if absent:
            raise WeightsError(f"card {card.name!r}: {folder} lacks {', '.join(absent)}; copy or download them again")
    for file in files:
        read_safetensors_header(file)  # a truncated file is told as such, before transformers is asked


def _download(card: ModelCard) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*_DOWNLOAD, "*.py"] if card.trust_remote_code else list(_DOWNLOAD)
    try:
        return Path(snapshot_download(card.location, revision=card.revision, allow_patterns=patterns))
    except Exception as error:  # network, disk, permission: each has its own class, and all end the same way
        raise WeightsError(
            f"card {card.name!r}: {card.location} is not on this machine and could not be downloaded "
            f"({type(error).__name__}: {error}). Put its folder at {mirror_folder(card.name)} "
            "(set CALM_GRAPH_MODELS to move that), or check the network; some models need their licence accepted "
            "and `hf auth login`"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers while it loads or saves: blocks that are cut off are not news to the user.

    Yields:
        Nothing.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
