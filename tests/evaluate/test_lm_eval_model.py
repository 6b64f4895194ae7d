"""The harness's own tasks run on a composition."""

from __future__ import annotations

from pathlib import Path

import pytest

from calm_graph.errors import EvaluationError
from calm_graph.evaluate.systems.base import Decoding
from calm_graph.evaluate.systems.engine import EngineSystem
from calm_graph.model.composed import ComposedModel
from tests.evaluate.conftest import write_rows
from tests.model.pico import Zoo

lm_eval = pytest.importorskip("lm_eval", reason="needs the `lm-eval` extra")

_CHOICE = """
task: pico_choice
dataset_path: json
dataset_kwargs: {data_files: {test: CHOICES}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc}]
"""
_ANSWER = """
task: pico_answer
dataset_path: json
dataset_kwargs: {data_files: {test: ANSWERS}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match}]
"""
_ROLLING = """
task: pico_text
dataset_path: json
dataset_kwargs: {data_files: {test: ANSWERS}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list: [{metric: bits_per_byte}]
"""


def ignore(index: int) -> None:
    pass


def test_tasks_of_every_kind_give_what_the_system_gives(
    zoo: Zoo, composed: ComposedModel, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    from calm_graph.evaluate.lm_eval_model import CalmGraphLM

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    system = EngineSystem(composed)
    questions = ["price of apples is", "Hello world", "The quick brown"]
    choices = [" 3", " fox", " corpus"]
    nats = [system.score([question] * 3, choices, done=ignore) for question in questions]
    likeliest = [each.index(min(each)) for each in nats]
    answers = [each[0] for each in system.generate(questions, Decoding(max_new_tokens=5, stop=("\n",)), done=ignore)]
    rows = [{"q": q, "choices": choices, "right": right} for q, right in zip(questions, likeliest, strict=True)]
    rows[0]["right"] = (likeliest[0] + 1) % 3
    texts = {
        "CHOICES": write_rows(tmp_path / "choices.jsonl", rows),
        "ANSWERS": write_rows(
            tmp_path / "a.jsonl", [{"q": q, "a": a} for q, a in zip(questions, answers, strict=True)]
        ),
    }
    for name, text in (("choice", _CHOICE), ("answer", _ANSWER), ("text", _ROLLING)):
        for key, path in texts.items():
            text = text.replace(key, path)
        (tmp_path / f"{name}.yaml").write_text(text)
    model = CalmGraphLM(str(checkpoint), batch_size=2)
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=["pico_choice", "pico_answer", "pico_text"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert found["pico_choice"]["acc,none"] == pytest.approx(2 / 3)
    assert found["pico_answer"]["exact_match,none"] == 1.0
    whole = system.score([""] * 3, questions, done=ignore)
    bits = sum(whole) / sum(len(q.encode()) for q in questions) / 0.6931471805599453
    assert found["pico_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)


def test_what_is_not_known_is_refused(checkpoint: Path) -> None:
    from calm_graph.evaluate.lm_eval_model import CalmGraphLM, _decoding

    with pytest.raises(EvaluationError, match="model_args: got peft"):
        CalmGraphLM(str(checkpoint), peft="x")
    with pytest.raises(EvaluationError, match="generation_kwargs: got num_beams"):
        _decoding({"num_beams": 4})
