"""The contract with lm-eval: its harness asks a real server, and finds what the model itself says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.model.composed import ComposedModel
from calm_graph.serve.local import LocalClient
from examples.arithmetic import data
from examples.arithmetic.measure import answers
from tests.http.conftest import Served, serving

TRAINED = Path(__file__).parents[2] / "examples" / "arithmetic" / "trained"
ROWS = 20
CHOICE_OFFSETS = (0, 1, -1, 10)
CHOOSE = """
task: choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def model() -> ComposedModel:
    return ComposedModel.from_pretrained(TRAINED)


@pytest.fixture(scope="module")
def server(model: ComposedModel) -> Iterator[Served]:
    client = LocalClient({"demo": model}, EngineSettings(max_running=8))
    with serving(client) as served:  # type: ignore[arg-type]
        yield served
    client.close()


def rows() -> list[data.Row]:
    return data.test_rows("mixed", data.DEPARTMENT_NAMES, split="unseen", count=ROWS)


def choices(row: data.Row) -> list[str]:
    """The right answer among near misses; where it stands depends on the row."""
    found = [str(int(row.completion) + offset) for offset in CHOICE_OFFSETS]
    turn = len(row.prompt) % len(found)
    return found[turn:] + found[:turn]


def evaluate(server: Served, folder: Path, **arguments: Any) -> dict[str, Any]:
    """Run the harness on both tasks, as its command does."""
    pytest.importorskip("tenacity", reason="needs lm-eval[api], of the lm-eval extra")
    lm_eval = pytest.importorskip("lm_eval", reason="needs the lm-eval extra")
    from lm_eval.tasks import TaskManager

    documents = [
        {"prompt": row.prompt, "completion": row.completion, "choices": choices(row)}
        | {"gold": choices(row).index(row.completion)}
        for row in rows()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    for name, text in (("choose", CHOOSE), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(text.format(rows=folder / "rows.jsonl", cache=folder / "cache"))
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={"model": "demo", "base_url": f"{server.url}/v1/completions", "max_length": 128, **arguments},
        tasks=["choose", "write"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    assert isinstance(found, dict)
    return found


def scores(model: ComposedModel, row: data.Row, *, with_bos: bool) -> list[tuple[float, bool]]:
    """Log-likelihood of each choice, and whether it is what greedy decoding gives; by the model itself."""
    found = []
    for choice in choices(row):
        prompt, both = (
            model.tokenizer(text, add_special_tokens=with_bos)["input_ids"]
            for text in (row.prompt, row.prompt + choice)
        )
        with torch.no_grad():
            logits = model(torch.tensor([both]), prompt_lengths=torch.tensor([len(both)])).logits[0]
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        ids = torch.tensor(both[len(prompt) :])
        found.append((float(logprobs.gather(1, ids[:, None]).sum()), bool((logprobs.argmax(-1) == ids).all())))
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        {"tokenizer": str(TRAINED), "tokenizer_backend": "huggingface", "add_bos_token": True},
        {"tokenizer": str(TRAINED), "add_bos_token": True, "num_concurrent": 4, "batch_size": 3},
        {},  # it asks /tokenizer_info, and has the server tokenise
    ],
    ids=["one by one", "together", "remote tokenizer"],
)
def test_the_harness_finds_what_the_model_says(
    server: Served, model: ComposedModel, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    found = evaluate(server, tmp_path, **arguments)
    with_bos = "add_bos_token" in arguments
    expected = [scores(model, row, with_bos=with_bos) for row in rows()]
    samples = sorted(found["samples"]["choose"], key=lambda sample: sample["doc_id"])
    assert len(samples) == ROWS
    for sample, scored in zip(samples, expected, strict=True):
        for (logprob, is_greedy), (own, own_is_greedy) in zip(sample["filtered_resps"], scored, strict=True):
            assert float(logprob) == pytest.approx(own, abs=1e-3)
            assert is_greedy == own_is_greedy
    best = [max(range(len(scored)), key=lambda place, scored=scored: scored[place]) for scored in expected]  # type: ignore[misc]
    right = [place == choices(row).index(row.completion) for place, row in zip(best, rows(), strict=True)]
    assert found["results"]["choose"]["acc,none"] == pytest.approx(sum(right) / ROWS)
    written = {sample["doc_id"]: sample["filtered_resps"][0] for sample in found["samples"]["write"]}
    if with_bos:
        own_answers = answers(model, model.tokenizer, [row.prompt for row in rows()])
        assert [written[place] for place in range(ROWS)] == own_answers
        assert found["results"]["choose"]["acc,none"] > 0.8 and found["results"]["write"]["exact_match,none"] > 0.8
    else:
        assert len(written) == ROWS
