"""A composition whose augmenter is at its owner's gives the numbers that it gives with the model here."""

from __future__ import annotations

import json
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from calm_graph import Augmenter, Composition, every
from calm_graph.augmenters.remote_backend import RemoteBackend
from calm_graph.declare.files import load_composition, stored_cards
from calm_graph.errors import AugmenterError, AugmenterUnavailableError, CheckpointError, DeclarationError, InputError
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.plan.graph import make_plan
from calm_graph.serve.augmenter_model import AugmenterModel, load_augmenter
from calm_graph.serve.augmenter_settings import AugmenterSettings
from registry import ModelCard, Registry
from registry import remote as remote_module
from registry.card import RemoteAccess
from registry.errors import CardError, FactMismatchError, FingerprintError, RemoteError, WeightsError
from registry.remote import remote_card
from registry.service import Service
from tests.model.cases import decoding_batch, encoded
from tests.model.pico import Zoo, train_at_random
from tests.serve.augmenters import ServedAugmenter, serving_augmenter

EXACT = {"atol": 1e-5, "rtol": 1e-5}
AUGMENTERS = {
    "same": Augmenter("same", attach=every(1), reading="prompt"),
    "causal": Augmenter("other", attach=every(1), reading="prompt", prompt_visibility="causal"),
    "template": Augmenter("other", attach=every(1), reading="prompt", prompt_template="Answer: {prompt}!"),
    "encoder": Augmenter("reader", attach=every(1), reading="prompt"),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_module, "_known", {})


def loaded(zoo: Zoo, name: str, folder: Path) -> AugmenterModel:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(zoo.registry.get(name).model_dump_json(include={"name", "source"}))
    return load_augmenter(AugmenterSettings(name=name, layers=(0, 1), registries=(folder,)))


@pytest.fixture(scope="session")
def models(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AugmenterModel]:
    folder = tmp_path_factory.mktemp("cards")
    return {name: loaded(zoo, name, folder / name) for name in ("same", "other", "reader")}


@pytest.fixture
def served(models: dict[str, AugmenterModel]) -> Iterator[ServedAugmenter]:
    with serving_augmenter(models["other"]) as served:
        yield served


def here_and_there(
    zoo: Zoo, models: dict[str, AugmenterModel], tmp_path: Path, augmenter: Augmenter
) -> Iterator[tuple[ComposedModel, ComposedModel]]:
    model = zoo.compose(augmenter)
    model.save_pretrained(tmp_path / "trained")
    with serving_augmenter(models[augmenter.key]) as served, warnings.catch_warnings():
        warnings.simplefilter("error")
        yield (
            model,
            ComposedModel.from_pretrained(
                tmp_path / "trained", registry=zoo.registry, remotes={augmenter.key: served.url}
            ),
        )


@pytest.mark.parametrize("case", AUGMENTERS)
def test_forward_cached_decoding_and_generate_are_the_local_models(
    zoo: Zoo, models: dict[str, AugmenterModel], tmp_path: Path, case: str
) -> None:
    for model, remote in here_and_there(zoo, models, tmp_path, AUGMENTERS[case]):
        assert isinstance(next(iter(remote.graph.backends.values())), RemoteBackend)
        ids, mask, lengths, width = decoding_batch(model)
        cache = remote.new_cache()
        with torch.no_grad():
            expected = model(ids, mask, prompt_lengths=lengths).logits
            found = remote(ids, mask, prompt_lengths=lengths).logits
            pieces = [remote(ids[:, :width], mask[:, :width], past_key_values=cache, prompt_lengths=lengths).logits]
            for end in range(width + 1, ids.shape[1] + 1):
                pieces.append(remote(ids[:, end - 1 : end], mask[:, :end], past_key_values=cache).logits)
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **EXACT)
        torch.testing.assert_close(torch.cat(pieces, dim=1)[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)
        ids, mask = encoded(model, ("price of apples is 3 and", "Hello"))
        for options in ({}, {"num_beams": 3}):
            options |= {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
            assert torch.equal(
                remote.generate(ids, attention_mask=mask, **options),
                model.generate(ids, attention_mask=mask, **options),
            )


def test_training_reads_a_service_as_it_reads_the_model(zoo: Zoo, served: ServedAugmenter) -> None:
    composition = Composition(name="desk", anchor="anchor", augmenters=[AUGMENTERS["causal"]])
    registry = Registry([zoo.registry.get("anchor"), remote_card("other", served.url)])
    found = []
    for known in (zoo.registry, registry):
        model = build_model(composition, registry=known, seed=0)
        train_at_random(model)
        ids, mask = encoded(model, ("Hello world, this is", "price of apples is 3"))
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :4] = -100
        loss = model(ids, mask, labels=labels).loss
        loss.backward()
        found.append((loss, {name: each.grad for name, each in model.attachments.named_parameters()}))
    (loss, gradients), (remote_loss, remote_gradients) = found
    torch.testing.assert_close(remote_loss, loss, **EXACT)
    for name, gradient in gradients.items():
        torch.testing.assert_close(remote_gradients[name], gradient, atol=1e-4, rtol=1e-4)


def test_trained_there_and_served_here(zoo: Zoo, served: ServedAugmenter, tmp_path: Path) -> None:
    registry = Registry([zoo.registry.get("anchor"), remote_card("other", served.url)])
    composition = Composition(name="desk", anchor="anchor", augmenters=[AUGMENTERS["causal"]])
    model = build_model(composition, registry=registry, seed=0)
    train_at_random(model)
    model.save_pretrained(tmp_path / "trained")
    local = ComposedModel.from_pretrained(tmp_path / "trained", registry=zoo.registry)
    assert not isinstance(next(iter(local.graph.backends.values())), RemoteBackend)
    ids, mask, lengths, _ = decoding_batch(model)
    with torch.no_grad():
        found, expected = (each(ids, mask, prompt_lengths=lengths).logits for each in (model, local))
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **EXACT)


def test_a_checkpoint_alone_sends_nothing_anywhere(
    zoo: Zoo, served: ServedAugmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made a checkpoint must not choose whom our users' texts and our keys are sent to."""
    card = remote_card("other", served.url)
    composition = Composition(name="desk", anchor="anchor", augmenters=[AUGMENTERS["causal"]])
    build_model(composition, registry=Registry([zoo.registry.get("anchor"), card])).save_pretrained(tmp_path / "t")
    with pytest.raises(RemoteError, match=r"came with a checkpoint, and what users write .* --remote other=http"):
        ComposedModel.from_pretrained(tmp_path / "t", registry=Registry([zoo.registry.get("anchor")]))
    monkeypatch.setattr(remote_module, "_known", {})
    registry = Registry([zoo.registry.get("anchor"), *stored_cards(tmp_path / "t")[1:]])
    with monkeypatch.context() as patch:  # looking at it asks nobody, either
        patch.setattr(Service, "ask", None)
        plan = make_plan(load_composition(tmp_path / "t"), registry=registry)
    assert plan.run("other").runtime == "remote" and served.trouble.num_asked == 0
    registry = Registry([zoo.registry.get("anchor")])
    ComposedModel.from_pretrained(tmp_path / "t", registry=registry, remotes={"other": served.url})
    ComposedModel.from_pretrained(tmp_path / "t", registry=registry, remotes={"other": card})


def test_another_model_is_refused_with_both_fingerprints(
    zoo: Zoo, models: dict[str, AugmenterModel], tmp_path: Path
) -> None:
    zoo.compose(AUGMENTERS["causal"]).save_pretrained(tmp_path / "trained")
    with serving_augmenter(models["same"]) as wrong:
        with pytest.raises(CheckpointError, match=r"runs sha256:\w+, but .* was trained with sha256:\w+"):
            ComposedModel.from_pretrained(tmp_path / "trained", registry=zoo.registry, remotes={"other": wrong.url})
        card = remote_card("other", wrong.url)
        said = card.model_copy(update={"fingerprint": f"sha256:{'0' * 64}"})
        with pytest.raises(FingerprintError, match=r"records sha256:0+, but the service .* runs sha256:"):
            Registry([said]).get("other")
        with pytest.raises(FactMismatchError, match=r"num_layers: the card says 7, the service 2"):
            Registry([card.model_copy(update={"num_layers": 7})]).get("other")
        with pytest.raises(CheckpointError, match=r"remotes: got 'othr', but .* has the models 'anchor', 'other'"):
            ComposedModel.from_pretrained(tmp_path / "trained", registry=zoo.registry, remotes={"othr": wrong.url})


def problems(registry: Registry, augmenter: Augmenter) -> str:
    with pytest.raises(DeclarationError) as caught:
        make_plan(Composition(name="desk", anchor="anchor", augmenters=[augmenter]), registry=registry)
    return str(caught.value)


def test_plans_are_checked(zoo: Zoo, models: dict[str, AugmenterModel], tmp_path: Path) -> None:
    settings = AugmenterSettings(name="other", layers=(1,), registries=(tmp_path,))
    (tmp_path / "other.json").write_text(zoo.registry.get("other").model_dump_json(include={"name", "source"}))
    with serving_augmenter(load_augmenter(settings)) as served:
        registry = Registry([zoo.registry.get("anchor"), remote_card("other", served.url)])
        found = problems(registry, Augmenter("other", attach=every(1), runtime="torch"))
        assert "augmenters[0].runtime: got 'torch', but 'other' is run by the service http" in found
        found = problems(registry, Augmenter("other", attach=every(1)))
        assert "augmenters[0].reading: got 'stream', but 'other' is run by a service, which reads prompts only" in found
        assert "reads layer 0, but the service http" in found and "gives layers 1; read one of them" in found
    found = problems(zoo.registry, Augmenter("other", attach=every(1), runtime="remote"))
    assert "got 'remote', but 'other' is a model of this machine; register a card" in found
    found = problems(Registry([zoo.registry.get("anchor"), remote_card("x", "http://127.0.0.1:1")]), Augmenter("x"))
    assert "the service http://127.0.0.1:1 cannot be reached" in found


@pytest.fixture
def ask(zoo: Zoo, served: ServedAugmenter, tmp_path: Path) -> Callable[..., torch.Tensor]:
    """Ask for the logits of a prompt, with changes of how the service is asked and of how its augmenter is declared."""

    def logits(*, if_unavailable: str = "fail", train: bool = False, **access: object) -> torch.Tensor:
        augmenter = AUGMENTERS["causal"].model_copy(update={"if_unavailable": if_unavailable})
        card = ModelCard(name="other", source=f"remote:{served.url}", remote=RemoteAccess(**access))  # type: ignore[arg-type]
        composition = Composition(name="desk", anchor="anchor", augmenters=[augmenter])
        model = build_model(composition, registry=Registry([zoo.registry.get("anchor"), card]), seed=0)
        train_at_random(model)
        model.train(train)
        ids, mask, lengths, _ = decoding_batch(model)
        served.trouble.asked_at_s.clear()
        with torch.no_grad():
            return model(ids, mask, prompt_lengths=lengths).logits[mask.bool()]

    return logits


@pytest.mark.parametrize(("wire", "bound"), [("float16", 5e-3), ("int8", 5e-2)])
def test_fewer_bits_on_the_wire_change_little(
    ask: Callable[..., torch.Tensor], served: ServedAugmenter, wire: str, bound: float
) -> None:
    exact = ask()
    found = ask(wire=wire)
    assert 0 < (found - exact).norm() / exact.norm() < bound
    full, small = served.trouble.bodies[-2:]
    assert small < 0.8 * full


def test_a_service_that_is_slow_times_out(ask: Callable[..., torch.Tensor], served: ServedAugmenter) -> None:
    served.trouble.wait_s = 5
    began = time.monotonic()
    with pytest.raises(AugmenterUnavailableError, match=r"'other': the service http.* did not answer within 0.3 s"):
        ask(timeout_s=0.3)
    assert time.monotonic() - began < 3 and served.trouble.num_asked == 1


def test_an_outage_is_tried_again_so_often_and_no_more(
    ask: Callable[..., torch.Tensor], served: ServedAugmenter
) -> None:
    served.trouble.change = lambda status, body: (503, b"busy") if served.trouble.num_asked < 3 else (status, body)
    assert len(ask(num_retries=2)) > 0 and served.trouble.num_asked == 3
    served.trouble.change = lambda status, body: (503, b'{"error": {"message": "no \\n room"}}')
    with pytest.raises(AugmenterUnavailableError, match=r"cannot answer now \(503: no   room\)"):
        ask(num_retries=1)
    assert served.trouble.num_asked == 2


def test_what_may_do_without_goes_on_and_says_so(
    ask: Callable[..., torch.Tensor], served: ServedAugmenter, zoo: Zoo
) -> None:
    served.trouble.change = lambda status, body: (500, b"")
    with pytest.warns(UserWarning, match=r"cannot answer now .*; answered without it"):
        found = ask(if_unavailable="skip", num_retries=0)
    anchor = zoo.compose(AUGMENTERS["causal"])
    ids, mask, lengths, _ = decoding_batch(anchor)
    with torch.no_grad(), anchor.augmenters({"other": 0}):
        torch.testing.assert_close(found, anchor(ids, mask, prompt_lengths=lengths).logits[mask.bool()], **EXACT)
    with pytest.raises(AugmenterUnavailableError):
        ask(if_unavailable="skip", num_retries=0, train=True)


def test_a_service_that_is_gone_is_loaded_from_what_it_said_before(
    ask: Callable[..., torch.Tensor], served: ServedAugmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask()
    served.stop()
    monkeypatch.setattr(remote_module, "_known", {})  # as in a process that starts now
    with pytest.raises(AugmenterUnavailableError, match="cannot be reached"):
        ask(num_retries=0)
    with pytest.warns(UserWarning, match="answered without it"):
        ask(num_retries=0, if_unavailable="skip")


def _changed(body: bytes, change: Callable[[dict[str, np.ndarray]], object]) -> bytes:
    tensors = {name: each.copy() for name, each in load(body).items()}
    change(tensors)
    return save(tensors)


HOSTILE = {
    "is no whole safetensors file": lambda body: body[:-10],
    "is no whole safetensors file .*": lambda body: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "is no whole safetensors file (.*)": lambda body: b"\xff" * 64,
    "has 1 tensors": lambda body: _changed(body, lambda tensors: tensors.pop("state.0")),
    "has 3 tensors": lambda body: _changed(body, lambda tensors: tensors.update(more=np.zeros(1))),
    r"has state.0 as float64": lambda body: _changed(
        body, lambda tensors: tensors.update({"state.0": tensors["state.0"].astype(np.float64)})
    ),
    r"has state.0 as float32 \(3, 16\)": lambda body: _changed(
        body, lambda tensors: tensors.update({"state.0": tensors["state.0"][:3]})
    ),
    "has numbers in layer 1 that are not finite": lambda body: _changed(
        body, lambda tensors: tensors["state.1"].__setitem__((0, 0), np.nan)
    ),
    "sent more than the": lambda body: body + b"\0" * 100_000,
}


@pytest.mark.parametrize("message", HOSTILE)
def test_an_answer_that_is_none_is_refused_and_never_skipped(
    ask: Callable[..., torch.Tensor], served: ServedAugmenter, message: str
) -> None:
    served.trouble.change = lambda status, body: (status, HOSTILE[message](body))
    with pytest.raises(AugmenterError, match=message) as caught:
        ask(if_unavailable="skip")
    assert not isinstance(caught.value, AugmenterUnavailableError) and "service http" in str(caught.value)


def test_layers_and_models_that_changed_there_are_told(
    ask: Callable[..., torch.Tensor], served: ServedAugmenter, models: dict[str, AugmenterModel], zoo: Zoo
) -> None:
    port = int(served.url.rpartition(":")[2])
    card = remote_card("other", served.url)
    composition = Composition(name="desk", anchor="anchor", augmenters=[AUGMENTERS["causal"]])
    model = build_model(composition, registry=Registry([zoo.registry.get("anchor"), card]))
    ids, mask, lengths, _ = decoding_batch(model)
    served.stop()
    with serving_augmenter(models["same"], port=port):
        with pytest.raises(AugmenterError, match=r"refuses the request \(409: fingerprint: got 'sha256:\w+', but"):
            model(ids, mask, prompt_lengths=lengths)


def test_keys_are_sent_and_never_kept(
    zoo: Zoo, models: dict[str, AugmenterModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.compose(AUGMENTERS["causal"]).save_pretrained(tmp_path / "trained")
    (tmp_path / "keys").write_text("us:geheim123\n")
    (tmp_path / "key").write_text("geheim123\n")
    with serving_augmenter(models["other"], api_keys_file=tmp_path / "keys") as served:

        def load_with(remote: str | ModelCard) -> ComposedModel:
            return ComposedModel.from_pretrained(tmp_path / "trained", registry=zoo.registry, remotes={"other": remote})

        with pytest.raises(RemoteError, match=r"does not accept the API key .401.; the card names none"):
            load_with(served.url)
        monkeypatch.setenv("CALM_GRAPH_REMOTE_KEY", "falsch")
        with pytest.raises(RemoteError, match=r"look at the variable CALM_GRAPH_REMOTE_KEY") as caught:
            load_with(served.url)
        assert "falsch" not in str(caught.value)
        monkeypatch.setenv("CALM_GRAPH_REMOTE_KEY", "geheim123")
        model = load_with(served.url)
        source = f"remote:{served.url}"
        by_file = ModelCard(name="x", source=source, remote={"api_key_file": str(tmp_path / "key")})
        load_with(by_file)
        monkeypatch.setattr(remote_module, "_known", {})
        with pytest.raises(RemoteError, match="has its API key in the variable NOT_SET, where there is none"):
            load_with(ModelCard(name="x", source=source, remote={"api_key_variable": "NOT_SET"}))
        model.save_pretrained(tmp_path / "again")
        ids, mask, lengths, _ = decoding_batch(model)
        model(ids, mask, prompt_lengths=lengths)
        monkeypatch.setenv("CALM_GRAPH_REMOTE_KEY", "falsch")
        with pytest.raises(AugmenterError, match="does not accept the API key"):
            model(ids, mask, prompt_lengths=lengths)
    written = (tmp_path / "again" / "composition.json").read_text()
    assert "geheim123" not in written and json.loads(written)["models"]["other"]["source"] == source
    kept = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert kept and not any(b"geheim123" in file.read_bytes() for file in kept)


def test_a_text_beyond_the_context_is_refused_here(zoo: Zoo, served: ServedAugmenter) -> None:
    registry = Registry([zoo.registry.get("anchor"), remote_card("other", served.url)])
    composition = Composition(name="desk", anchor="anchor", augmenters=[AUGMENTERS["causal"]])
    model = build_model(composition, registry=registry)
    ids, mask = encoded(model, ("Hello",))
    with pytest.raises(InputError, match=r"augmenter 'other': the text has .* tokens, but its context holds 192"):
        model(ids, mask, prompt_lengths=mask.sum(dim=1), prompt_texts=["a b c d " * 30])
    assert served.trouble.num_asked == 0


def test_a_tokenizer_that_is_not_what_it_says_is_refused(
    zoo: Zoo, models: dict[str, AugmenterModel], tmp_path: Path
) -> None:
    lying = replace(models["other"], tokenizer={**models["other"].tokenizer, "../../x": "!"})
    with serving_augmenter(lying) as served:  # what else it is called is not written
        registry = Registry([zoo.registry.get("anchor"), remote_card("other", served.url)])
        composition = Composition(name="desk", anchor="anchor", augmenters=[AUGMENTERS["causal"]])
        build_model(composition, registry=registry)
    assert not [file for file in tmp_path.rglob("x") if file.is_file()]
    with serving_augmenter(replace(lying, tokenizer=models["same"].tokenizer)) as served:
        registry = Registry([zoo.registry.get("anchor"), remote_card("other", served.url)])
        with pytest.raises(WeightsError, match=r"says its tokenizer is sha256:\w+, but gave sha256:"):
            build_model(composition, registry=registry)


def test_what_is_no_service_is_told(zoo: Zoo) -> None:
    with pytest.raises(RemoteError, match=r"remote 'x': got ftp://x; a service's address is https://host:port/path"):
        remote_card("x", "ftp://x")
    with pytest.raises(RemoteError) as caught:
        remote_card("x", "https://me:secret@host")
    assert "secret" not in str(caught.value)
    with socket.socket() as listening:  # takes connections and says nothing
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        card = ModelCard(name="x", source=f"remote:{url}", remote=RemoteAccess(timeout_s=0.2, num_retries=0))
        with pytest.raises(RemoteError, match=r"did not answer within 0.2 s"):
            Registry([card]).get("x")
    with pytest.raises(CardError, match="runtime"):
        Registry().add_folder(_written(zoo.folder / "wrong", {"name": "x", "source": "hub:a/b", "runtime": "remote"}))


def _written(folder: Path, card: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "x.json").write_text(json.dumps(card))
    return folder
