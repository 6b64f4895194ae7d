"""Several models: an ensemble of one is the model, a merge of nothing is the anchor, and requests go right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from calm_graph.errors import EvaluationError
from calm_graph.evaluate.baselines.merge import check_same_tensors, merge
from calm_graph.evaluate.baselines.routing import PromptRule, RoutingSystem, TaskRule
from calm_graph.evaluate.baselines.soft_ensemble import WordEnsemble, soft_ensemble
from calm_graph.evaluate.baselines.words import word_nats, words_of
from calm_graph.evaluate.run import Candidate, evaluate
from calm_graph.evaluate.systems.asking import Asking
from calm_graph.evaluate.systems.base import Decoding
from calm_graph.evaluate.systems.plain import PlainSystem
from calm_graph.evaluate.tasks.task import Task
from calm_graph.interrupts import StopRequest
from registry.weights import load_causal_lm
from tests.model.pico import Zoo

PROMPTS = ["price of apples is", "Hello world,", "The quick brown fox"]
COMPLETIONS = [" 3 and price of pears", " this is a small corpus", " jumps over the lazy dog;"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("one", "llama", seed=1)
    zoo.add("two", "llama", seed=2)
    zoo.add("qwen", "qwen2", seed=3)
    zoo.add("gemma", "gemma3_text", seed=4, sliding_window=4)
    zoo.add("spaces", "llama", tokenizer="spaces", seed=5)
    zoo.add("wide", "llama", seed=6, hidden_size=24, num_attention_heads=4)
    return zoo


def quiet(index: int) -> None:
    pass


def system(zoo: Zoo, name: str) -> PlainSystem:
    return PlainSystem.of_card(zoo.registry.get(name), name=name)


def ensemble(zoo: Zoo, *names: str) -> Any:
    return soft_ensemble([zoo.registry.get(name) for name in names], batch_size=2)


@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=8), Decoding(max_new_tokens=8, temperature=1.0, seed=3)])
def test_an_ensemble_of_a_model_with_itself_is_the_model(zoo: Zoo, decoding: Decoding) -> None:
    for name in ("one", "gemma"):
        together = ensemble(zoo, name, name)
        alone = PlainSystem.of_card(zoo.registry.get(name), name=name, batch_size=2)
        assert together.generate(PROMPTS, decoding, done=quiet) == alone.generate(PROMPTS, decoding, done=quiet)
        expected = alone.score(PROMPTS, COMPLETIONS, done=quiet)
        assert together.score(PROMPTS, COMPLETIONS, done=quiet) == pytest.approx(expected, rel=1e-5)


def test_tokens_are_predicted_by_the_mean_of_the_distributions(zoo: Zoo) -> None:
    together = ensemble(zoo, "one", "qwen")
    tokenizer = together.tokenizer
    models = [load_causal_lm(zoo.registry.get(name)) for name in ("one", "qwen")]

    def mean(ids: list[int]) -> torch.Tensor:
        return torch.stack([model(torch.tensor([ids])).logits[0].softmax(dim=-1) for model in models]).mean(dim=0)

    for prompt, completion, nats in zip(
        PROMPTS, COMPLETIONS, together.score(PROMPTS, COMPLETIONS, done=quiet), strict=True
    ):
        before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, completion))
        logs = mean(before + after).log()
        expected = -sum(logs[len(before) - 1 + place, id].item() for place, id in enumerate(after))
        assert nats == pytest.approx(expected, rel=1e-4)
    # Without a cache, one token after the other.
    ids = tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]
    new: list[int] = []
    for _ in range(6):
        new.append(int(mean(ids + new)[-1].argmax()))
    (answers,) = together.generate([PROMPTS[0]], Decoding(max_new_tokens=6), done=quiet)
    assert answers[0] == tokenizer.decode(new, skip_special_tokens=True)


def test_other_tokenizers_vote_word_by_word(zoo: Zoo) -> None:
    together = ensemble(zoo, "one", "spaces")
    assert isinstance(together, WordEnsemble)
    done: list[int] = []
    scores = together.score(PROMPTS, COMPLETIONS, done=done.append)
    assert done == [0, 1, 2]
    members = [system(zoo, name) for name in ("one", "spaces")]
    for prompt, completion, score in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        expected, before = 0.0, prompt
        for word in words_of(completion):
            nats = [member.score([before], [word], done=quiet)[0] for member in members]
            expected -= math.log(sum(math.exp(-each) for each in nats) / 2)
            before += word
        assert score == pytest.approx(expected, rel=1e-4)
    with pytest.raises(EvaluationError, match="one and spaces have different tokenizers, so there is no next token"):
        together.generate(PROMPTS, Decoding(), done=quiet)


def test_words_are_all_of_a_text(zoo: Zoo) -> None:
    for text in ("", "a", " a  b\nc ", "  ", "ภาษาไทย 你好"):
        assert "".join(words_of(text)) == text
    assert words_of(" a  b\nc ") == [" a", "  b", "\nc", " "]
    one = system(zoo, "one")
    nats = word_nats(one, PROMPTS, COMPLETIONS)
    assert [len(each) for each in nats] == [len(text.split()) for text in COMPLETIONS]
    # Its tokens end where words end, so nothing is lost by tokenising them one by one.
    assert [float(each.sum()) for each in nats] == pytest.approx(one.score(PROMPTS, COMPLETIONS, done=quiet), rel=1e-5)
    with pytest.raises(EvaluationError, match=r"completions\[0\]: got '', which has no word"):
        word_nats(one, ["a"], [""])
    with pytest.raises(EvaluationError, match=r"prompts\[0\]: .* tokens with the completion, but its context is 192"):
        word_nats(one, ["a " * 200], [" b"])


def test_an_ensemble_needs_two(zoo: Zoo) -> None:
    with pytest.raises(EvaluationError, match="got 1 models, but two or more are needed"):
        ensemble(zoo, "one")


def test_merging_is_arithmetic_on_the_weights(zoo: Zoo) -> None:
    one, two, three = (zoo.registry.get(name) for name in ("one", "two", "one"))
    weights = {name: dict(load_causal_lm(zoo.registry.get(name)).named_parameters()) for name in ("one", "two")}
    zero = dict(merge(one, two, alpha=0.0).named_parameters())
    assert all(torch.equal(each, weights["one"][name]) for name, each in zero.items())
    linear = dict(merge(one, two, alpha=0.25).named_parameters())
    for name, each in linear.items():
        torch.testing.assert_close(each, 0.75 * weights["one"][name] + 0.25 * weights["two"][name])
    # one + (two - one) is two; one + (two - two) is one.
    added = dict(merge(one, two, base=three, alpha=1.0).named_parameters())
    for name, each in added.items():
        torch.testing.assert_close(each, weights["two"][name])
    same = dict(merge(one, two, base=two, alpha=0.7).named_parameters())
    assert all(torch.equal(each, weights["one"][name]) for name, each in same.items())


def test_models_that_do_not_fit_are_not_merged(zoo: Zoo) -> None:
    one = zoo.registry.get("one")
    with pytest.raises(
        EvaluationError,
        match=r"'one' and 'wide' have different tensors \(model.embed_tokens.weight: 448x16 and 448x24; .* more\)",
    ):
        merge(one, zoo.registry.get("wide"))
    with pytest.raises(EvaluationError, match=r"model\.layers\.0\.self_attn\.q_proj\.bias: nothing and 16"):
        check_same_tensors(one, zoo.registry.get("qwen"))
    with pytest.raises(EvaluationError, match="same shapes but different tokenizers"):
        merge(one, zoo.registry.get("spaces"))
    with pytest.raises(EvaluationError, match="'one' and 'wide'"):
        merge(one, zoo.registry.get("two"), base=zoo.registry.get("wide"))


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """Two tasks; each one's dev rows are what one of two models says by itself."""

    def write(name: str, rows: list[dict[str, str]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def task(name: str) -> Task:
        rows = [{"q": f"{name} {prompt}", "a": completion} for prompt, completion in
                zip(PROMPTS, COMPLETIONS, strict=True)]  # fmt: skip
        data, dev = write(f"{name}.jsonl", rows), write(f"{name}.dev.jsonl", rows)
        return Task(name=name, data=data, dev=(dev,), prompt="{q}", reference="{a}", metrics=("bits_per_byte",))

    return [task("apples"), task("world")]


def test_tasks_go_to_the_system_that_predicts_their_dev_rows(
    zoo: Zoo, tasks: list[Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = [system(zoo, name) for name in ("one", "two")]
    # What a model says greedily is likelier to it than to the other.
    for task, own in zip(tasks, systems, strict=True):
        rows = [json.loads(line) for line in Path(task.dev[0]).read_text().splitlines()]
        said = own.generate([row["q"] for row in rows], Decoding(max_new_tokens=8), done=quiet)
        kept = [{"q": row["q"], "a": text} for row, (text,) in zip(rows, said, strict=True) if text.strip()]
        assert kept
        Path(task.dev[0]).write_text("".join(json.dumps(row) + "\n" for row in kept))
    asking = Asking(tmp_path / "predictions", "plain")
    rule = TaskRule.chosen_on_dev(tasks, systems, asking=asking)
    assert re.search(r"^routing\.own\.world\.dev\.two\.nats (\d+)/\1 samples$", capsys.readouterr().err, re.MULTILINE)
    assert rule.choices == {"own/apples": 0, "own/world": 1}
    assert all(bits[rule.choices[label]] == min(bits) for label, bits in rule.bits.items())
    routing = RoutingSystem(systems, rule, rule_identity=rule.identity)
    prompts = [item.prompt for task in tasks for item in task.items()]
    prompts = prompts[::2] + prompts[1::2]
    completions = [" 3"] * len(prompts)
    done: list[int] = []
    scores = routing.score(prompts, completions, done=done.append)
    assert sorted(done) == list(range(len(prompts)))
    alone = [each.score(prompts, completions, done=quiet) for each in systems]
    places = [0 if prompt.startswith("apples") else 1 for prompt in prompts]
    assert scores == pytest.approx([alone[place][index] for index, place in enumerate(places)], rel=1e-5)
    answers = routing.generate(prompts, Decoding(max_new_tokens=4), done=quiet)
    for index, place in enumerate(places):
        assert [answers[index]] == systems[place].generate([prompts[index]], Decoding(max_new_tokens=4), done=quiet)
    assert routing.chosen == {prompt: systems[place].name for prompt, place in zip(prompts, places, strict=True)}
    with pytest.raises(EvaluationError, match="'never asked' belongs to none of the tasks own/apples, own/world"):
        routing.score(["never asked"], [" 3"], done=quiet)
    with pytest.raises(EvaluationError, match="task own/apples names no dev rows"):
        TaskRule.chosen_on_dev([tasks[0].model_copy(update={"dev": ()})], systems, asking=asking)


def test_a_choice_that_was_stopped_goes_on(
    zoo: Zoo, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = [system(zoo, name) for name in ("one", "two")]
    scored: list[str] = []
    score = PlainSystem.score
    stop = StopRequest()

    def heard(self: PlainSystem, *asked: Sequence[str], done: Callable[[int], None]) -> list[float]:
        scored.append(self.name)
        stop.requested = len(scored) == 3
        return score(self, *asked, done=done)

    monkeypatch.setattr(PlainSystem, "score", heard)
    asking = Asking(tmp_path / "predictions", stop=stop)

    def routing() -> RoutingSystem:
        return RoutingSystem(systems, TaskRule.chosen_on_dev(tasks, systems, asking=asking), rule_identity="")

    candidates = [Candidate("routing", routing)]
    assert evaluate(tasks, candidates, predictions=asking.predictions, show="none", stop=stop).stopped
    assert scored == ["one", "two", "one"]  # the second task was being scored
    stop.requested = False
    TaskRule.chosen_on_dev(tasks, systems, asking=asking)
    assert scored[3:] == ["one", "two"]
    TaskRule.chosen_on_dev(tasks, systems, asking=asking)
    assert len(scored) == 5


def test_prompts_go_to_the_system_that_predicts_them(zoo: Zoo) -> None:
    systems = [system(zoo, name) for name in ("one", "two", "spaces")]
    prompts = [*PROMPTS, "word", ""]
    choices = PromptRule(systems)(prompts)
    for prompt, choice in zip(PROMPTS, choices, strict=False):
        first, _, rest = prompt.partition(" ")
        nats = [each.score([first], [f" {rest}"], done=quiet)[0] for each in systems]
        assert nats[choice] == min(nats)
    assert choices[3:] == [0, 0]
    routing = RoutingSystem(systems, lambda prompts: [2] * len(prompts), rule_identity="last")
    assert routing.score(PROMPTS, COMPLETIONS, done=quiet) == systems[2].score(PROMPTS, COMPLETIONS, done=quiet)


def test_what_cannot_be_routed(zoo: Zoo) -> None:
    one, two = system(zoo, "one"), system(zoo, "two")
    with pytest.raises(EvaluationError, match="got 1 systems"):
        RoutingSystem([one], PromptRule([one]), rule_identity="")
    two.few_shot = False
    with pytest.raises(EvaluationError, match="only one take examples before the prompt"):
        RoutingSystem([one, two], PromptRule([one, two]), rule_identity="")
    two.few_shot = True
    identities = {RoutingSystem([one, two], PromptRule([one]), rule_identity=each).identity for each in "ab"}
    assert len(identities) == 2
