"""A cache on disk: what is written, what a stop leaves, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from calm_graph import Augmenter, Composition, every, fit
from calm_graph.data.load import load_dataset
from calm_graph.errors import InputError, StatesError
from calm_graph.states import compute as compute_module
from calm_graph.states.key import sample_keys
from calm_graph.states.precompute import precompute
from calm_graph.states.store import StateStore, open_states
from registry.layouts import LAYOUTS
from registry.weights import load_tokenizer
from tests.model.pico import Zoo
from tests.states.conftest import HELD_OUT, OTHER, ROWS, SAME, composed
from tests.train.conftest import quick

ROOT = Path(__file__).parents[2]


def make(zoo: Zoo, out: Path, composition: Composition | None = None, *data: Any, **options: Any) -> Any:
    options = {"registry": zoo.registry, "show": "none", "dtype": "fp32", "shard_bytes": 40_000, **options}
    return precompute(composition or composed(SAME, OTHER), *(data or (ROWS,)), out=out, **options)


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def use(zoo: Zoo, states: Path, composition: Composition | None = None, **options: Any) -> None:
    fit(
        composition or composed(SAME, OTHER), data=options.pop("data", ROWS), out=states.parent / "run",
        settings=quick(max_steps=1), registry=zoo.registry, show="none", states=states, **options,
    )  # fmt: skip


def test_the_states_are_those_of_the_models_themselves(zoo: Zoo, tmp_path: Path) -> None:
    make(zoo, tmp_path)
    tokenizer = load_tokenizer(zoo.registry.get("anchor"))
    dataset = load_dataset(ROWS, tokenizer, max_length=None)
    batch = dataset.batch([3])
    stored = StateStore(tmp_path).batch(batch)
    for name, layers in (("same", (1, 3)), ("anchor", (1,))):
        model = AutoModelForCausalLM.from_pretrained(zoo.folder / name).eval()
        with torch.no_grad():
            hidden = model(batch["input_ids"], output_hidden_states=True).hidden_states
        assert stored[name].layers == layers
        for place, layer in enumerate(layers):
            if layer == 3:
                continue  # transformers puts the final norm over its last hidden state
            torch.testing.assert_close(stored[name].states_RLC[:, place], hidden[layer + 1][0], rtol=1e-5, atol=1e-5)


def test_the_estimate_is_exact_and_equal_samples_are_kept_once(zoo: Zoo, tmp_path: Path) -> None:
    twice = [*ROWS, *ROWS[:7]]
    found = make(zoo, tmp_path, None, twice, HELD_OUT, dtype="bf16")
    shards = [load_file(file) for file in tmp_path.glob("*.safetensors")]
    states = [tensor for shard in shards for name, tensor in shard.items() if name.endswith(".states")]
    assert {tensor.dtype for tensor in states} == {torch.bfloat16}
    assert found.num_bytes == sum(tensor.numel() * 2 for tensor in states)
    assert found.num_tokens["same"] == sum(int(shard["same.lengths"].sum()) for shard in shards)
    assert found.num_samples == len(ROWS) + len(HELD_OUT) == len(StateStore(tmp_path))
    assert found.num_shards == len(shards) > 2
    assert found.seconds > 0 and found.is_exact
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1  # others may read all of it, or nothing


def test_a_dry_run_writes_nothing(zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = make(zoo, tmp_path / "states", dry_run=True, show="plain")
    assert not (tmp_path / "states").exists()
    assert found.num_shards_left == found.num_shards
    line = capsys.readouterr().err
    assert re.match(r"30 samples, tokens: .* of same, .* of other, .* of anchor; [\d.]+ kB in \d+ shards; about", line)


class HeardWhereNothingMayBeRaised:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(zoo, tmp_path / "whole")
    original, calls = compute_module.write_shard, iter(range(10))

    def interrupted(*args: Any) -> None:
        if next(calls) == 2:
            HeardWhereNothingMayBeRaised()
        original(*args)

    monkeypatch.setattr(compute_module, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted: [23] of \d shards are written; the same command goes"):
        make(zoo, tmp_path / "states")
    monkeypatch.undo()
    with pytest.raises(StatesError, match=r"has no states for \d+ of the 30 samples of data .* precompute did not see"):
        use(zoo, tmp_path / "states")
    found = make(zoo, tmp_path / "states")
    assert 0 < found.num_shards_left < found.num_shards
    assert digests(tmp_path / "states") == digests(tmp_path / "whole")
    assert make(zoo, tmp_path / "states").num_shards_left == 0


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_half(zoo: Zoo, tmp_path: Path) -> None:
    """A real SIGKILL, while the file is half on disk."""
    script = f"""
import os
from pathlib import Path
from calm_graph.states import store
from registry import ModelCard
from tests.model.pico import Zoo
from tests.states.test_precompute import make
zoo = Zoo(Path({str(zoo.folder)!r}))
for name in ("anchor", "same", "other"):
    zoo.registry.add(ModelCard(name=name, source=f"folder:{{zoo.folder / name}}"))
original, calls = store.save_file, iter(range(10))
def killed(tensors, file, metadata):
    original(tensors, file, metadata=metadata)
    if next(calls) == 1:
        os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), 9)
store.save_file = killed
make(zoo, Path({str(tmp_path / "states")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    states = tmp_path / "states"
    assert len(list(states.glob(".*.tmp"))) == 1
    assert 0 < len(StateStore(states)) < len(ROWS)
    make(zoo, states)
    make(zoo, tmp_path / "whole")
    assert digests(states) == digests(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_leaves_no_scratch(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calm_graph.states import precompute as precompute_module
    from calm_graph.states import store as store_module

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "save_file", full)
    with pytest.raises(StatesError, match=r"safetensors: cannot be written \(.*No space left"):
        make(zoo, tmp_path / "states")
    assert [file.name for file in (tmp_path / "states").iterdir()] == ["manifest.json"]
    monkeypatch.setattr(precompute_module.shutil, "disk_usage", lambda _: type("", (), {"free": 10}))
    with pytest.raises(StatesError, match=r"bytes are needed, but 10 are free"):
        make(zoo, tmp_path / "states")


def test_more_rows_are_added_to_what_is_there(zoo: Zoo, tmp_path: Path) -> None:
    make(zoo, tmp_path / "states")
    with pytest.raises(StatesError, match=r"states: has no states for 5 of the 5 samples of data"):
        use(zoo, tmp_path / "states", eval_data=HELD_OUT)
    found = make(zoo, tmp_path / "states", None, ROWS, HELD_OUT)
    assert found.num_shards_left == 1
    use(zoo, tmp_path / "states", eval_data=HELD_OUT, resume=True)


def test_one_cache_serves_compositions_that_read_less(zoo: Zoo, tmp_path: Path) -> None:
    make(zoo, tmp_path / "states")
    fewer = Augmenter("same", attach=[{"augmenter_layer": 3, "anchor_layer": 3}])
    use(zoo, tmp_path / "states", composed(fewer))


CHANGES = {
    "layers": (composed(Augmenter("same", attach=every(1)), OTHER), r"runs\.same\.layers: is \[1, 3\], but \[0, 1, 2"),
    "augmenter": (composed(SAME, Augmenter("second")), r"runs\.second\.reading: is nothing, but 'stream' is asked for"),
    "reading": (
        composed(SAME, Augmenter("other", attach=OTHER.attach)),
        r"runs\.other\.reading: is 'prompt', but 'stream' is asked for",
    ),
    "template": (
        composed(SAME, OTHER.model_copy(update={"prompt_template": "Q: {prompt}"})),
        r"runs\.other\.prompt_template: is None, but 'Q: {prompt}' is asked for",
    ),
    "first layer": (
        composed(Augmenter("same", attach=[{"augmenter_layer": 1, "anchor_layer": 0}]), OTHER),
        r"runs\.anchor\.layers: is \[1\], but the first layer that is attached is 0",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_states_of_something_else_are_refused(zoo: Zoo, tmp_path: Path, change: str) -> None:
    composition, message = CHANGES[change]
    make(zoo, tmp_path / "states")
    with pytest.raises(StatesError, match=message) as caught:
        use(zoo, tmp_path / "states", composition)
    assert "calm-graph precompute" in str(caught.value) and "\n" not in str(caught.value)


def test_other_weights_and_other_tokenizers_are_refused(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "models")
    zoo.add("anchor", "llama", seed=1)
    zoo.add("same", "qwen2", seed=2, hidden_size=24, num_attention_heads=4)
    composition = composed(SAME)
    make(zoo, tmp_path / "states", composition)
    zoo.add("same", "qwen2", seed=3, hidden_size=24, num_attention_heads=4)
    with pytest.raises(StatesError, match=r"runs\.same\.models\.same: is 'sha256:\w+', but 'sha256:\w+' is asked for"):
        use(zoo, tmp_path / "states", composition)
    zoo.add("same", "qwen2", seed=2, hidden_size=24, num_attention_heads=4)
    zoo.add("anchor", "llama", tokenizer="spaces", seed=1)
    with pytest.raises(StatesError, match=r"runs\.anchor\.models\.anchor: .*; tokenizer: is 'sha256"):
        use(zoo, tmp_path / "states", composition)


def test_other_rows_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    make(zoo, tmp_path / "states")
    changed = [*ROWS[:-1], {"text": ROWS[-1]["text"] + "!"}]
    with pytest.raises(StatesError, match=r"no states for 1 of the 30 samples of data \(the first is sample 29\)"):
        use(zoo, tmp_path / "states", data=changed)


def test_a_folder_is_not_filled_with_two_kinds_of_states(zoo: Zoo, tmp_path: Path) -> None:
    make(zoo, tmp_path / "states")
    with pytest.raises(StatesError, match=r"holds other states: dtype: is 'fp32', but 'bf16' is asked for\. Choose"):
        make(zoo, tmp_path / "states", dtype="bf16")
    make(zoo, tmp_path / "other", composed(SAME))
    shard = next((tmp_path / "other").glob("*.safetensors"))
    (tmp_path / "states" / shard.name).write_bytes(shard.read_bytes())
    with pytest.raises(StatesError, match="belongs to another cache"):
        StateStore(tmp_path / "states")


def test_no_cache_and_damaged_caches_are_named(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(StatesError, match=r"there is no manifest\.json, so it holds no cached states"):
        use(zoo, tmp_path / "none")
    make(zoo, tmp_path / "states")
    shard = next((tmp_path / "states").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(StatesError, match=r"safetensors: damaged \(.*\); remove it and run precompute again"):
        use(zoo, tmp_path / "states")
    manifest = tmp_path / "states/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": "new"}))
    with pytest.raises(StatesError, match="damaged, or of another version"):
        use(zoo, tmp_path / "states")


def test_states_that_training_changes_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    inner = Composition(name="inner", anchor="other", augmenters=[Augmenter("second", attach=every(2))])
    with pytest.raises(StatesError, match=r"the states of augmenter 'inner' are not constant, because 'second@\d_to"):
        make(zoo, tmp_path / "states", composed(Augmenter(inner, attach=every(2))))


def loud(zoo: Zoo) -> Composition:
    """A composition that reads a model whose states are huge, as those of some real models are."""
    zoo.add("loud", "llama", seed=9)
    model = AutoModelForCausalLM.from_pretrained(zoo.folder / "loud")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e6)
    model.save_pretrained(zoo.folder / "loud")
    return composed(Augmenter("loud", attach=every(2)))


def test_numbers_too_large_for_fp16_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    composition = loud(zoo)
    with pytest.raises(StatesError, match=r"states of 'loud': some reach [\d.e+]+, but fp16 holds at most 6.55e\+04"):
        make(zoo, tmp_path / "states", composition, dtype="fp16")
    make(zoo, tmp_path / "wide", composition, dtype="bf16")


def test_rows_without_anything_to_read(zoo: Zoo, tmp_path: Path) -> None:
    texts = [{"text": "no prompt here"}]
    assert make(zoo, tmp_path / "states", composed(OTHER), texts, anchor=False).num_bytes == 0
    assert len(StateStore(tmp_path / "states")) == 1


def test_an_image_augmenter_is_cached(zoo: Zoo, tmp_path: Path) -> None:
    zoo.add("eye", "vit", seed=5)
    rows = [
        {"prompt": "Which?", "completion": answer, "augmenter_inputs": {"eye": {"pixel_values": picture}}}
        for answer, picture in (("yes", torch.ones(3, 16, 16)), ("no", -torch.ones(3, 16, 16)))
    ]
    composition = composed(Augmenter("eye", attach=every(2), reading="prompt"))
    assert not make(zoo, tmp_path / "states", composition, rows).is_exact
    losses = []
    for name, states in (("plain", None), ("cached", tmp_path / "states")):
        result = fit(
            composition, data=rows, out=tmp_path / name, settings=quick(), registry=zoo.registry, show="none",
            states=states,
        )  # fmt: skip
        losses.append(result.metrics["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_every_part_of_a_sample_is_in_its_key(zoo: Zoo) -> None:
    tokenizer = load_tokenizer(zoo.registry.get("anchor"))
    rows = [
        {"prompt": "a b", "completion": " c"},
        {"prompt": "a", "completion": " b c"},
        {"text": "a b c"},
        {"prompt": "a b", "completion": " d"},
    ]
    dataset = load_dataset(rows, tokenizer, max_length=None)
    keys = sample_keys(dataset.batch(range(4)))
    assert len(set(keys)) == 4
    assert keys[2] == sample_keys(dataset.batch([2]))[0]  # padding is not part of it


def test_stored_states_of_other_texts_are_refused_by_the_model(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo.compose(SAME)
    make(zoo, tmp_path, model.plan.composition)
    dataset = open_states(tmp_path, model).join(load_dataset(ROWS, model.tokenizer, max_length=None), ROWS)
    batch = dataset.batch([0, 1])
    batch["stored_states"] = dataset.batch([0, 3])["stored_states"]
    with pytest.raises(
        InputError, match=r"stored_states\['same'\]: got \[\d+, \d+\] tokens by row, but the model read"
    ):
        model(**batch)
    with pytest.raises(InputError, match="so there can be no past_key_values"):
        model(**dataset.batch([0]), use_cache=True)
    with pytest.raises(InputError, match=r"got \[\], but 'same' is on"):
        model(**(dataset.batch([0]) | {"stored_states": {}}))
    with torch.no_grad(), model.augmenters(same=0.0):
        model(**(dataset.batch([0]) | {"stored_states": {}}))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)  # two workers that import torch, on a busy machine
def test_ray_actors_write_the_same_shards(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    make(zoo, tmp_path / "here")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        make(zoo, tmp_path / "there", num_workers=2)
        assert digests(tmp_path / "here") == digests(tmp_path / "there")
        with pytest.raises(StatesError, match=r"num_workers: got 3, one CPU each, but the Ray cluster has 2; ask for"):
            make(zoo, tmp_path / "more", num_workers=3)
        with pytest.raises(StatesError, match=r"^states of 'loud': some reach .*, but fp16 holds"):
            make(zoo, tmp_path / "narrow", loud(zoo), num_workers=1, dtype="fp16")
        assert ray.is_initialized()  # a cluster that was there is left as it was
    finally:
        ray.shutdown()


def test_an_anchor_whose_blocks_are_not_known_is_run_whole(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(LAYOUTS, "llama")
    make(zoo, tmp_path / "states", composed(SAME), show="plain")
    assert "the states of anchor 'anchor' are not kept: its architecture is not in" in capsys.readouterr().err
    assert [*StateStore(tmp_path / "states").key.runs] == ["same"]
    use(zoo, tmp_path / "states", composed(SAME))
