"""A composition on disk: it comes back bit for bit, and anything else that happens to it is one clear error."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import calm_graph.model.checkpoint as checkpoint
from calm_graph import Augmenter, CalmGraphError, CheckpointError, ComposedModel, Composition, build_model
from calm_graph.declare.description import digest, read_description
from registry import ModelCard, Registry
from tests.model.cases import ATTACH, CASES, PROMPTS, compose, decoding_batch, encoded
from tests.model.pico import Zoo, train_at_random

ROOT = Path(__file__).parents[2]
FILES = {
    "README.md",
    "composition.json",
    "composition.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def saved(zoo: Zoo, tmp_path: Path) -> Path:
    compose(zoo, "other").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def load(folder: Path, zoo: Zoo, **arguments: Any) -> ComposedModel:
    return ComposedModel.from_pretrained(folder, registry=zoo.registry, **arguments)


def logits(model: ComposedModel) -> torch.Tensor:
    ids, mask, lengths, _ = decoding_batch(model)
    with torch.no_grad():
        return model(ids, mask, prompt_lengths=lengths).logits


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


# There and back


@pytest.mark.parametrize("case", ["same", "gate", "no-norms", "diamond", "nested-checkpoint", "mixed"])
def test_the_same_logits_come_back(zoo: Zoo, tmp_path: Path, case: str) -> None:
    model = compose(zoo, case)
    model.save_pretrained(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == FILES
    assert [each.name for each in tmp_path.iterdir()] == ["saved"]
    back = load(tmp_path / "saved", zoo)
    assert torch.equal(logits(back), logits(model))
    assert not back.training
    assert back.plan == model.plan
    again = tmp_path / "again"
    back.save_pretrained(again)
    assert (again / "composition.json").read_bytes() == (tmp_path / "saved" / "composition.json").read_bytes()
    one, two = (load_file(each / "composition.safetensors") for each in (again, tmp_path / "saved"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_only_the_trained_parameters_are_in_the_file(zoo: Zoo, tmp_path: Path) -> None:
    zoo.add("wide", "llama", hidden_size=256, num_attention_heads=8, head_dim=32, num_key_value_heads=8)
    model = zoo.compose(Augmenter("other", attach=ATTACH, gate="tanh"), anchor="wide")
    model.save_pretrained(tmp_path)
    file = tmp_path / "composition.safetensors"
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    with safe_open(file, framework="pt") as opened:
        assert {f"graph.edges.attachments.{name}" for name in opened.keys()} == trained.keys()  # noqa: SIM118
    num_bytes = sum(each.numel() * each.element_size() for each in trained.values())
    assert num_bytes <= file.stat().st_size <= 1.01 * num_bytes


def test_parameters_of_a_nested_checkpoint_are_not_written_again(zoo: Zoo, tmp_path: Path) -> None:
    compose(zoo, "nested-checkpoint").save_pretrained(tmp_path)
    keys = {name.partition(".")[0] for name in load_file(tmp_path / "composition.safetensors")}
    assert keys == {"saved@1_to_anchor@1", "saved@3_to_anchor@3"}


def test_the_dtype_of_attachments_is_kept(zoo: Zoo, tmp_path: Path) -> None:
    composition = Composition(name="half", anchor="anchor", augmenters=CASES["other"])
    model = build_model(composition, registry=zoo.registry, seed=0, attachment_dtype=torch.bfloat16)
    train_at_random(model)
    model.save_pretrained(tmp_path)
    back = load(tmp_path, zoo)
    assert {each.dtype for each in back.attachments.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(back), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "auto", None])
def test_dtype_is_that_of_the_frozen_models(zoo: Zoo, saved: Path, dtype: torch.dtype | str | None) -> None:
    model = load(saved, zoo, dtype=dtype)
    expected = torch.bfloat16 if dtype in (torch.bfloat16, "bfloat16") else torch.float32
    assert model.anchor.dtype == expected
    assert {each.dtype for each in model.graph.backends.parameters()} == {expected}
    assert {each.dtype for each in model.attachments.parameters()} == {torch.float32}
    assert logits(model).dtype == expected


@pytest.mark.parametrize("device_map", ["cpu", "auto", torch.device("cpu"), {"": "cpu"}])
def test_device_map(zoo: Zoo, saved: Path, device_map: Any) -> None:
    assert load(saved, zoo, device_map=device_map).device.type in ("cpu", "cuda", "mps")


def test_arguments_that_do_not_apply_are_refused(zoo: Zoo, saved: Path) -> None:
    with pytest.raises(TypeError, match=r"from_pretrained\(\) got \['load_in_4bit'\], which do not apply"):
        load(saved, zoo, load_in_4bit=True)
    with pytest.raises(TypeError, match=r"dtype: got 'float99'; give a torch\.dtype"):
        load(saved, zoo, dtype="float99")
    with pytest.raises(TypeError, match="device_map"):
        load(saved, zoo, device_map={"anchor": "cpu", "graph": "meta"})


def test_the_generation_config_comes_back(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo.compose(*CASES["same"])
    model.generation_config.max_new_tokens = 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path)
    back = load(tmp_path, zoo)
    assert back.generation_config.max_new_tokens == 3
    ids, mask = encoded(back, PROMPTS)
    assert back.generate(ids, attention_mask=mask).shape[1] <= ids.shape[1] + 3


def test_transformers_auto_classes_load_it(zoo: Zoo, saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert isinstance(model, ComposedModel)
    assert torch.equal(logits(model), logits(compose(zoo, "other")))
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert tokenizer(PROMPTS[1])["input_ids"] == model.tokenizer(PROMPTS[1])["input_ids"]


def test_a_pipeline_loads_it(zoo: Zoo, saved: Path) -> None:
    generate = pipeline("text-generation", model=str(saved))
    options = {"max_new_tokens": 6, "do_sample": False}
    text = generate(PROMPTS[1], **options)[0]["generated_text"]
    model = compose(zoo, "other")
    ids, mask = encoded(model, PROMPTS[1:2])
    expected = model.generate(ids, attention_mask=mask, **options, pad_token_id=0)
    assert text == PROMPTS[1] + model.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "imports",
    [
        "import calm_graph\nfrom transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM\nimport calm_graph",
    ],
)
def test_a_fresh_process_loads_it(zoo: Zoo, saved: Path, imports: str) -> None:
    loads = "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    done = run_python(f"import sys\n{imports}\n{loads}\nprint(type(model).__name__, model.plan.anchor.name)", saved)
    assert done.stdout.split() == ["ComposedModel", "anchor"], done.stderr


def test_a_chat_template_with_several_parts_is_saved(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo.compose(*CASES["same"])
    model.tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    for _ in range(2):
        model.save_pretrained(tmp_path / "saved")
    back = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert back.chat_template == model.tokenizer.chat_template


def test_the_card_says_what_it_is(saved: Path) -> None:
    text = (saved / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: calm_graph\n")
    assert "| other | augmenter | stream | gemma3_text | unspecified |" in text
    assert "| other | 1 | anchor | 1 | 4 | " in text


def test_it_does_not_tell_where_it_was_made_beyond_the_cards(zoo: Zoo, saved: Path) -> None:
    for name in FILES - {"composition.json"}:
        assert str(zoo.folder).encode() not in (saved / name).read_bytes()


# Writing


def test_saving_over_a_checkpoint_keeps_what_else_is_there(zoo: Zoo, saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    (saved / "runs").mkdir()
    model = zoo.compose(*CASES["other"])
    train_at_random(model, seed=5)
    model.save_pretrained(saved)
    assert (saved / "notes.txt").read_text() == "mine" and (saved / "runs").is_dir()
    assert {each.name for each in saved.iterdir()} == FILES | {"notes.txt", "runs"}
    assert torch.equal(logits(load(saved, zoo)), logits(model))


def test_a_folder_that_cannot_have_neighbours_can_be_saved_into(zoo: Zoo, tmp_path: Path, monkeypatch) -> None:
    """A mounted volume: nothing can be moved into it from the folder above."""
    volume = tmp_path / "volume"
    volume.mkdir()
    plain_replace = os.replace

    def replace(source: Any, target: Any, **more: Any) -> None:
        if (volume in Path(source).parents) != (volume in Path(target).parents):
            raise OSError(18, "Invalid cross-device link")
        plain_replace(source, target, **more)

    monkeypatch.setattr(os, "replace", replace)
    compose(zoo, "other").save_pretrained(volume)
    assert {each.name for each in volume.iterdir()} == FILES
    assert torch.equal(logits(load(volume, zoo)), logits(compose(zoo, "other")))


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user to whom permissions apply")
def test_a_folder_without_permission_is_an_error(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot be written"):
        compose(zoo, "other").save_pretrained(tmp_path / "closed" / "saved")


def test_a_file_in_the_way_is_an_error(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "saved").write_text("mine")
    with pytest.raises(CheckpointError, match="saved: cannot be written"):
        compose(zoo, "other").save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved").read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["saved"]


def in_a_child(work: Callable[[], None]) -> tuple[int, str]:
    """Run something in a copy of this process; return how it ended and what it wrote."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work()
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitpid(child, 0)[1], said


def changed(zoo: Zoo) -> ComposedModel:
    model = zoo.compose(*CASES["other"])
    train_at_random(model, seed=5)
    return model


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "composition.json", "composition.safetensors"])
def test_a_full_disk_leaves_the_old_checkpoint(zoo: Zoo, saved: Path, name: str) -> None:
    """A real one: the system refuses to write more than so many bytes of a file."""
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    model = changed(zoo)

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[name]) - 1, resource.RLIM_INFINITY))
        model.save_pretrained(saved)

    _, said = in_a_child(save)
    assert said.startswith(f"CheckpointError: {saved}: cannot be written ("), said
    assert "too large" in said and said.endswith("what was there is unchanged"), said
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [each.name for each in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize("num_replaced", range(len(FILES) + 1))
def test_a_kill_while_saving_leaves_the_old_or_the_new(zoo: Zoo, saved: Path, num_replaced: int) -> None:
    model = changed(zoo)
    calls = itertools.count()
    replace = os.replace

    def killed(*arguments: Any, **more: Any) -> None:
        if next(calls) == num_replaced:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments, **more)

    def save() -> None:
        os.replace = killed
        model.save_pretrained(saved)

    status, said = in_a_child(save)
    assert said == "" and (status == signal.SIGKILL) == (num_replaced < len(FILES))
    expected = model if num_replaced == len(FILES) else compose(zoo, "other")
    assert torch.equal(logits(load(saved, zoo)), logits(expected))


def test_no_order_of_two_writes_makes_a_mixture_that_loads(zoo: Zoo, saved: Path, tmp_path: Path) -> None:
    zoo.compose(*CASES["gate"]).save_pretrained(tmp_path / "two")
    shutil.copy(tmp_path / "two" / "composition.json", saved / "composition.json")
    with pytest.raises(CheckpointError, match=r"it belongs to another composition than composition\.json beside it"):
        load(saved, zoo)


# Reading what is damaged or foreign


def refused(folder: Path, zoo: Zoo, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(folder, zoo)
    model = compose(zoo, "other")
    before = {name: each.clone() for name, each in model.attachments.named_parameters()}
    with pytest.raises(CalmGraphError, match=message):
        model.load_composition_weights(folder)
    assert all(torch.equal(each, before[name]) for name, each in model.attachments.named_parameters())


def test_a_missing_file(zoo: Zoo, saved: Path) -> None:
    (saved / "composition.safetensors").unlink()
    refused(saved, zoo, r"there is no composition\.safetensors; copy the checkpoint again")
    (saved / "composition.json").unlink()
    refused(saved, zoo, r"there is no composition\.json; is it the folder that training or save_pretrained wrote")


def test_a_folder_that_is_not_there(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no-such-thing' is no folder here, and the hub did not give it"):
        load(tmp_path / "no-such-thing", zoo)


@pytest.mark.parametrize("kept", [0, 5, 100, -1000, -1])
def test_a_file_cut_short(zoo: Zoo, saved: Path, kept: int) -> None:
    file = saved / "composition.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(saved, zoo, "damaged or cut short|its content has changed")


def test_a_flipped_bit_anywhere(zoo: Zoo, saved: Path) -> None:
    file = saved / "composition.safetensors"
    content = bytearray(file.read_bytes())
    description = read_description(saved)
    original = checkpoint.read_tensors(saved, description)
    header = int.from_bytes(content[:8], "little")
    unnoticed = 0
    for place in [*range(0, 8 + header, 7), *range(8 + header, len(content), 997), len(content) - 1]:
        content[place] ^= 1
        file.write_bytes(content)
        try:
            tensors = checkpoint.read_tensors(saved, description)
        except CheckpointError:
            pass
        else:  # the one thing nobody reads: the word "pt" in the header
            unnoticed += 1
            assert all(torch.equal(tensors[name], original[name]) for name in original)
        content[place] ^= 1
    assert unnoticed <= 2
    content[-1] ^= 4
    file.write_bytes(content)
    refused(saved, zoo, "its content has changed since it was written")


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "damaged"),
        ('{"schema_version": 1, "compos', "damaged"),
        ("\x00\x01", "damaged"),
        ("[1, 2]", "it has no schema_version"),
        ('{"name": "x"}', "it has no schema_version"),
        ('{"schema_version": 99, "versions": {"calm_graph": "7.0"}}', "99 is newer than 1.*written by 7.0"),
        ('{"schema_version": 1}', "damaged"),
        ('{"schema_version": 1, "composition": {"name": "x"}, "models": {}}', "damaged|belongs to another"),
        ('{"schema_version": 1, "composition": {}, "models": {"a": {"nome": "a"}}}', "damaged|belongs to another"),
        ('{"schema_version": 1, "composition": {}, "models": []}', "damaged"),
    ],
)
def test_a_description_that_is_none(zoo: Zoo, saved: Path, content: str, message: str) -> None:
    (saved / "composition.json").write_text(content)
    refused(saved, zoo, message)


def test_a_description_that_is_not_text(zoo: Zoo, saved: Path) -> None:
    (saved / "composition.json").write_bytes(b"\xff\xfe\x00garbage")
    refused(saved, zoo, "damaged")


def edit(saved: Path, **changes: Any) -> None:
    """Change the description and make the tensors belong to it, as a program of somebody else could."""
    description = json.loads((saved / "composition.json").read_text()) | changes
    (saved / "composition.json").write_text(json.dumps(description))
    tensors = load_file(saved / "composition.safetensors")
    metadata = {"sha256": checkpoint._tensor_digest(tensors), "belongs_to": digest(description)}
    save_file(tensors, saved / "composition.safetensors", metadata=metadata)


def test_a_description_with_cards_of_another_kind(zoo: Zoo, saved: Path) -> None:
    edit(saved, models={"anchor": {"name": "anchor", "colour": "blue", "fingerprint": None}})
    with pytest.raises(CheckpointError, match="damaged"):
        load(saved, zoo)


def test_a_description_with_a_composition_that_does_not_hold(zoo: Zoo, saved: Path) -> None:
    edit(saved, composition={"name": "x", "anchor": "anchor", "augmenters": [{"name": "other", "attach": {"stop": 2}}]})
    with pytest.raises(CalmGraphError, match="composition"):
        load(saved, zoo)


def test_tensors_that_do_not_fit(zoo: Zoo, saved: Path) -> None:
    tensors = load_file(saved / "composition.safetensors")
    del tensors["other@1_to_anchor@1.key.weight"]
    tensors["other@1_to_anchor@1.query.weight"] = torch.zeros(2, 2)
    tensors["something"] = torch.zeros(1)
    save_file(tensors, saved / "composition.safetensors", metadata={})
    edit(saved)
    lacks = r"it lacks other@1_to_anchor@1\.key\.weight; it has something, which the composition does not"
    refused(saved, zoo, rf"{lacks}; .*query\.weight has shape \(2, 2\), but the composition needs \(16, 16\)")


def test_attachments_of_another_composition_are_not_taken(zoo: Zoo, saved: Path) -> None:
    model = zoo.compose(Augmenter("other", attach=ATTACH, gate="tanh"))
    with pytest.raises(CheckpointError, match=r"it lacks other@1_to_anchor@1\.gate"):
        model.load_composition_weights(saved)


def test_another_frozen_model_is_refused_by_both_fingerprints(zoo: Zoo, saved: Path, tmp_path: Path) -> None:
    recorded = json.loads((saved / "composition.json").read_text())["models"]["other"]["fingerprint"]
    edited = tmp_path / "edited"
    shutil.copytree(zoo.folder / "other", edited)
    tensors = load_file(edited / "model.safetensors")
    next(iter(tensors.values()))[0] += 1e-3
    save_file(tensors, edited / "model.safetensors", metadata={"format": "pt"})
    registry = Registry(zoo.registry)
    registry.add(ModelCard(name="other", source=f"folder:{edited}"), replace=True)
    with pytest.raises(CheckpointError) as raised:
        ComposedModel.from_pretrained(saved, registry=registry)
    fingerprints = {part for part in str(raised.value).split() if part.startswith("sha256:")}
    assert recorded in fingerprints and len(fingerprints) == 2
    assert f"trained with other frozen models: 'other' was {recorded} and is sha256:" in str(raised.value)


def test_models_may_move(zoo: Zoo, saved: Path, tmp_path: Path) -> None:
    registry = Registry()
    for name in ("anchor", "other"):
        shutil.copytree(zoo.folder / name, tmp_path / "elsewhere" / name)
        registry.add(ModelCard(name=name, source=f"folder:{tmp_path / 'elsewhere' / name}"))
    description = json.loads((saved / "composition.json").read_text())
    for card in description["models"].values():
        card["source"] = "folder:/gone/" + card["name"]
    (saved / "composition.json").write_text(json.dumps(description))
    model = ComposedModel.from_pretrained(saved, registry=registry)
    assert torch.equal(logits(model), logits(compose(zoo, "other")))


def test_models_that_are_gone_are_named(zoo: Zoo, saved: Path) -> None:
    description = json.loads((saved / "composition.json").read_text())
    description["models"]["other"]["source"] = "folder:/gone/other"
    (saved / "composition.json").write_text(json.dumps(description))
    with pytest.raises(Exception, match=r"'other'.*/gone/other") as raised:
        ComposedModel.from_pretrained(saved, registry=Registry())
    assert type(raised.value).__name__ == "WeightsError"


def test_cards_in_the_checkpoint_are_enough(zoo: Zoo, saved: Path) -> None:
    model = ComposedModel.from_pretrained(saved, registry=Registry())
    assert torch.equal(logits(model), logits(compose(zoo, "other")))


def test_a_nested_checkpoint_is_found_and_checked(zoo: Zoo, tmp_path: Path) -> None:
    model = compose(zoo, "nested-checkpoint")
    model.save_pretrained(tmp_path / "outer")
    alone = ComposedModel.from_pretrained(tmp_path / "outer", registry=Registry())
    assert torch.equal(logits(alone), logits(model))
    inner = zoo.compose(Augmenter("second", attach=ATTACH), anchor="other", name="inner-source")
    train_at_random(inner, seed=9)
    inner.save_pretrained(tmp_path / "saved")
    registry = Registry(zoo.registry)
    registry.add(ModelCard(name="saved", source=f"folder:{tmp_path / 'saved'}"), replace=True)
    with pytest.raises(CheckpointError, match="trained with other frozen models: 'saved' was sha256:"):
        ComposedModel.from_pretrained(tmp_path / "outer", registry=registry)


def test_a_nested_checkpoint_may_be_saved_again(zoo: Zoo, tmp_path: Path) -> None:
    compose(zoo, "nested-checkpoint").save_pretrained(tmp_path / "outer")
    source = zoo.registry.get("saved").source.removeprefix("folder:")
    inner = ComposedModel.from_pretrained(source, registry=zoo.registry)
    for again in ("one", "two", "three", "four"):  # metadata in any order would be the same four times in 1,296
        inner.save_pretrained(tmp_path / again)
        registry = Registry(zoo.registry)
        registry.add(ModelCard(name="saved", source=f"folder:{tmp_path / again}"), replace=True)
        ComposedModel.from_pretrained(tmp_path / "outer", registry=registry)


def test_a_checkpoint_in_a_checkpoint_in_a_checkpoint(zoo: Zoo, tmp_path: Path) -> None:
    compose(zoo, "nested-checkpoint").save_pretrained(tmp_path / "middle")
    registry = Registry()
    for name in ("anchor", "same"):
        registry.add(zoo.registry.get(name))
    registry.add(ModelCard(name="middle", source=f"folder:{tmp_path / 'middle'}"))
    augmenters = (Augmenter("middle", attach=ATTACH),)
    model = build_model(Composition(name="outer", anchor="same", augmenters=augmenters), registry=registry, seed=0)
    train_at_random(model)
    model.save_pretrained(tmp_path / "outer")
    back = ComposedModel.from_pretrained(tmp_path / "outer", registry=Registry())
    assert torch.equal(logits(back), logits(model))


# The hub


def test_push_to_hub_uploads_the_composition_only(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    def create_repo(self: HfApi, repo_id: str, **arguments: Any) -> Any:
        calls["create"] = (repo_id, arguments)
        return type("Url", (), {"repo_id": f"me/{repo_id}"})

    def upload_folder(self: HfApi, *, folder_path: Path, **arguments: Any) -> Any:
        calls["files"] = {file.name for file in Path(folder_path).iterdir()}
        calls["size_bytes"] = sum(file.stat().st_size for file in Path(folder_path).iterdir())
        calls["upload"] = arguments
        return type("Commit", (), {"commit_url": "https://hub/commit/1"})

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert compose(zoo, "other").push_to_hub("mine", private=True, revision="main") == "https://hub/commit/1"
    assert calls["create"] == ("mine", {"private": True, "exist_ok": True})
    assert calls["files"] == FILES
    assert calls["upload"] == {
        "repo_id": "me/mine",
        "commit_message": "Upload composition composition",
        "revision": "main",
        "create_pr": False,
    }


def test_save_pretrained_can_push(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []
    monkeypatch.setattr(ComposedModel, "push_to_hub", lambda self, repo_id, **more: pushed.append((repo_id, more)))
    compose(zoo, "other").save_pretrained(tmp_path / "name", push_to_hub=True)
    compose(zoo, "other").save_pretrained(tmp_path / "name", push_to_hub=True, repo_id="me/it", private=True)
    assert pushed == [("name", {}), ("me/it", {"private": True})]
