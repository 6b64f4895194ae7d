"""Whole runs: what they leave on disk, how they stop, and that a resumed one equals one that was never stopped."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForCausalLM

import calm_graph
from calm_graph import Composition, every
from calm_graph.data.load import load_dataset
from calm_graph.declare.composition import Augmenter
from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import CheckpointError, DeclarationError, InputError, TrainingError
from calm_graph.generate.selector import Prompt
from calm_graph.model.composed import ComposedModel
from calm_graph.train import TrainingInterrupted, TrainResult, fit
from calm_graph.train import job as job_module
from calm_graph.train import loop as loop_module
from calm_graph.train.metrics import read_metrics
from calm_graph.train.state import list_states
from tests.model.pico import Zoo
from tests.train.conftest import HELD_OUT, ROWS, MakeModel, quick


def run(model: ComposedModel, out: Path | str, settings: TrainSettings, **options: Any) -> TrainResult:
    return fit(model, **{"data": ROWS, "eval_data": HELD_OUT, "show": "none", **options}, out=out, settings=settings)


def weights(model: ComposedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.attachments.state_dict().items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in ("tokens_per_s", "step_s")} for record in records]


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch, *, number: int = signal.SIGINT) -> None:
    """Send this process a real signal during a step."""
    steps = iter(range(1, 10**6))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(steps) == step:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    original = loop_module.train_step
    monkeypatch.setattr(loop_module, "train_step", interrupted)


def test_a_run_learns_and_leaves_its_files(train_zoo: Zoo, tmp_path: Path) -> None:
    composition = Composition(name="prices", anchor="anchor", augmenters=[Augmenter("same", attach=every(2))])
    settings = quick(max_steps=30, eval_every_steps=10, checkpoint_every_steps=10)
    out = tmp_path / "out"
    result = fit(
        composition,
        data=ROWS,
        eval_data=HELD_OUT,
        out=out,
        settings=settings,
        registry=train_zoo.registry,
        show="none",
    )
    assert (result.stopped, result.steps, result.checkpoint) == ("finished", 30, str(out))
    assert result.metrics["eval_loss"] < result.metrics["first_eval_loss"] - 1
    num_bytes = sum(len(row["completion"].encode()) for row in HELD_OUT)
    records = read_metrics(out / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "eval_loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 31))
    assert [record["step"] for record in evaluations] == [0, 10, 20, 30]
    written = {record["step"]: record.pop("written") for record in steps if "written" in record}
    assert list(written) == [10, 20, 30]
    assert written[30].keys() == {"same@1_to_anchor@1", "same@3_to_anchor@3"} == written[10].keys()
    assert all(share > 0 for share in written[30].values())
    assert steps[0].keys() == {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_s", "padding", "step_s"
    }  # fmt: skip
    assert all(0 <= record["padding"] < 1 and record["tokens_per_s"] > 0 for record in steps)
    assert any(record["padding"] > 0 for record in steps)
    for record in evaluations:
        # Both are the same sum, shared out by tokens or by bytes.
        ratio = record["eval_bits_per_byte"] * math.log(2) * num_bytes / record["eval_loss"]
        assert ratio == pytest.approx(round(ratio), rel=1e-6)
    assert json.loads((out / "settings.json").read_text()) == settings.model_dump(mode="json")
    assert json.loads((out / "result.json").read_text()) == {
        "stopped": "finished", "steps": 30, "metrics": result.metrics
    }  # fmt: skip
    assert [path.name for path in list_states(out / "checkpoints")] == ["step-20", "step-30"]
    assert any((out / "tensorboard").iterdir())
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.bin")) and not list(out.rglob("*.p*t"))
    for name in ("loss.png", "attachments.png"):
        with Image.open(out / name) as image:
            assert image.width >= 800
            assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 50


def test_in_the_given_order_the_seed_changes_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    trained = {}
    for order, seed in (("given", 1), ("given", 2), ("shuffled", 1)):
        model = make_model()
        run(model, tmp_path / f"{order}-{seed}", quick(order=order, seed=seed))
        trained[order, seed] = weights(model)
    assert_same(trained["given", 1], trained["given", 2])
    assert any(not torch.equal(t, trained["shuffled", 1][name]) for name, t in trained["given", 1].items())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_frozen_bf16_weights_are_widened_on_a_cpu_for_fp32_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    zoo = Zoo(tmp_path / "models")
    for name, architecture in (("anchor", "llama"), ("same", "qwen2")):
        zoo.add(name, architecture)
        folder = zoo.folder / name
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    built: list[ComposedModel] = []
    original = job_module.build_model

    def build(*args: Any, **kwargs: Any) -> ComposedModel:
        built.append(original(*args, **kwargs))
        return built[0]

    monkeypatch.setattr(job_module, "build_model", build)
    composition = Composition(name="prices", anchor="anchor", augmenters=[Augmenter("same", attach=every(2))])
    settings = quick(max_steps=1, precision=precision)
    fit(composition, data=ROWS, out=tmp_path / "out", settings=settings, registry=zoo.registry, show="none")
    assert {parameter.dtype for parameter in built[0].anchor.parameters()} == {dtype}
    assert {parameter.dtype for parameter in built[0].attachments.parameters()} == {torch.float32}


def test_the_checkpoint_loads_as_transformers_users_expect(
    train_zoo: Zoo, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    result = run(model, tmp_path, quick())
    assert calm_graph.__version__
    for folder in (result.checkpoint, list_states(tmp_path / "checkpoints")[-1]):
        loaded = AutoModelForCausalLM.from_pretrained(folder, registry=train_zoo.registry)
        assert_same(weights(loaded), weights(model))


def test_the_best_evaluation_is_kept_and_patience_ends_the_run(
    train_zoo: Zoo, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    seen: list[dict[str, torch.Tensor]] = []

    def fake(model: ComposedModel, *args: Any, **kwargs: Any) -> Any:
        seen.append(weights(model))
        return loop_module.Evaluation(loss=next(losses), bits_per_byte=1.0)

    monkeypatch.setattr(loop_module, "evaluate", fake)
    result = run(make_model(), tmp_path, quick(max_steps=100, patience=2))
    assert (result.stopped, result.steps) == ("early", 6)
    assert (result.metrics["best_step"], result.metrics["eval_loss"]) == (2, 2.0)
    assert_same(weights(ComposedModel.from_pretrained(tmp_path, registry=train_zoo.registry)), seen[1])


def test_without_evaluation_data_the_last_step_is_kept(train_zoo: Zoo, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    result = run(model, tmp_path, quick(), eval_data=None)
    assert "eval_loss" not in result.metrics
    assert_same(weights(ComposedModel.from_pretrained(tmp_path, registry=train_zoo.registry)), weights(model))
    with pytest.raises(TrainingError, match="patience is 2, but without eval_data nothing is evaluated"):
        run(model, tmp_path / "other", quick(patience=2), eval_data=None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_resumed_run_equals_an_uninterrupted_one(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    settings = quick(max_steps=9, gradient_accumulation_steps=2)
    whole = make_model()
    expected = run(whole, tmp_path / "whole", settings)

    out = tmp_path / "out"
    interrupt_after(3, monkeypatch, number=number)
    with pytest.raises(TrainingInterrupted, match=r"interrupted at step 3 of 9; saved .*step-3\. Resume") as caught:
        run(make_model(), out, settings)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (caught.value.result.stopped, caught.value.result.steps) == ("interrupted", 3)
    assert not (out / "result.json").exists()
    assert (out / "loss.png").exists()

    torch.rand(5)  # whatever else used torch's random numbers meanwhile
    resumed = make_model()
    result = run(resumed, out, settings, resume=True)
    assert_same(weights(resumed), weights(whole))
    assert (result.metrics, result.steps) == (expected.metrics, expected.steps)
    records = [without_times(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("whole", "out")]
    assert records[0] == records[1]
    moments = [(tmp_path / name / "checkpoints/step-9/training.safetensors").read_bytes() for name in ("whole", "out")]
    assert moments[0] == moments[1]


def test_a_killed_process_resumes_from_its_last_state(train_zoo: Zoo, make_model: MakeModel, tmp_path: Path) -> None:
    """The metrics of steps after the last state are written again, not twice."""
    settings = quick(max_steps=7, checkpoint_every_steps=2)
    whole = make_model()
    run(whole, tmp_path / "whole", settings)
    script = f"""
import os
from pathlib import Path
from calm_graph.train import loop
from registry import ModelCard
from tests.model.pico import Zoo
from tests.train.conftest import quick
from tests.train.test_run import run
from calm_graph import Augmenter, every
zoo = Zoo(Path({str(train_zoo.folder)!r}))
for name in ("anchor", "same", "other"):
    zoo.registry.add(ModelCard(name=name, source=f"folder:{{zoo.folder / name}}"))
model = zoo.compose(
    Augmenter("same", attach=every(2)), Augmenter("other", attach=every(2), reading="prompt"), trained=False
)
original, steps = loop.train_step, iter(range(1, 100))
def killed(*args, **kwargs):
    if next(steps) == 6:
        os.kill(os.getpid(), 9)
    return original(*args, **kwargs)
loop.train_step = killed
run(model, Path({str(tmp_path / "out")!r}), quick(max_steps=7, checkpoint_every_steps=2))
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    out = tmp_path / "out"
    assert list_states(out / "checkpoints")[-1].name == "step-4"
    assert read_metrics(out / "metrics.jsonl")[-1]["step"] == 5
    resumed = make_model()
    run(resumed, out, settings, resume=True)
    assert_same(weights(resumed), weights(whole))
    records = [without_times(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("whole", "out")]
    assert records[0] == records[1]


def test_a_second_ctrl_c_does_not_wait(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(loop_module, "train_step", impatient)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(make_model(), tmp_path, quick())
    assert not isinstance(caught.value, TrainingInterrupted)


def test_a_loss_that_is_no_number_names_step_and_rows_and_overwrites_nothing(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    calls = []

    def spoil(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if module.training or torch.is_grad_enabled():
            calls.append(1)
        return output * math.nan if len(calls) > 4 else output

    model.get_output_embeddings().register_forward_hook(spoil)
    with pytest.raises(
        TrainingError, match=r"step 5: the loss is not a finite number, in the rows data\[\d+\], .*step-4\. Look at"
    ):
        run(model, tmp_path, quick())
    assert [path.name for path in list_states(tmp_path / "checkpoints")] == ["step-2", "step-4"]
    assert not (tmp_path / "result.json").exists()


def test_an_earlier_run_is_not_overwritten(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    run(model, tmp_path, quick())
    with pytest.raises(TrainingError, match=r"holds a finished run; go on with resume \(--resume\), or choose another"):
        run(model, tmp_path, quick())
    (tmp_path / "result.json").unlink()
    with pytest.raises(TrainingError, match=r"holds an unfinished run \(.*step-6\)"):
        run(model, tmp_path, quick())
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(TrainingError, match="holds a composition that was not trained here"):
        run(model, tmp_path / "saved", quick())
    with pytest.raises(TrainingError, match="holds a composition, but no run to resume"):
        run(model, tmp_path / "saved", quick(), resume=True)


def test_a_finished_run_can_be_resumed_with_more_steps_but_not_other_settings_or_data(
    make_model: MakeModel, tmp_path: Path
) -> None:
    run(make_model(), tmp_path, quick(max_steps=4))
    again = run(make_model(), tmp_path, quick(max_steps=4), resume=True)
    assert (again.steps, again.stopped) == (4, "finished")
    assert run(make_model(), tmp_path, quick(max_steps=8), resume=True).steps == 8
    with pytest.raises(TrainingError, match=r"cannot resume with other settings: learning_rate was 0.01, now 0.5"):
        run(make_model(), tmp_path, quick(learning_rate=0.5), resume=True)
    with pytest.raises(TrainingError, match=r"was trained on other data \(sha256:\w+, now sha256:\w+\)"):
        run(make_model(), tmp_path, quick(max_steps=9), resume=True, data=ROWS[1:])


def test_resume_begins_where_there_is_nothing_to_resume(make_model: MakeModel, tmp_path: Path) -> None:
    assert run(make_model(), tmp_path / "new", quick(max_steps=2), resume=True).steps == 2


@pytest.mark.parametrize("file", ["training.safetensors", "training.json", "composition.safetensors"])
def test_a_damaged_state_is_named(make_model: MakeModel, tmp_path: Path, file: str) -> None:
    run(make_model(), tmp_path, quick(max_steps=2))
    damaged = tmp_path / "checkpoints/step-2" / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises((TrainingError, CheckpointError), match=r"step-2"):
        run(make_model(), tmp_path, quick(max_steps=3), resume=True)


def test_a_state_of_another_composition_is_refused(train_zoo: Zoo, make_model: MakeModel, tmp_path: Path) -> None:
    run(make_model(), tmp_path, quick(max_steps=2))
    other = train_zoo.compose(Augmenter("same", attach=every(1)), trained=False)
    with pytest.raises(TrainingError, match=r"is the state of another composition"):
        run(other, tmp_path, quick(max_steps=3), resume=True)


def test_a_second_stage_starts_from_a_checkpoint(train_zoo: Zoo, make_model: MakeModel, tmp_path: Path) -> None:
    first = make_model()
    run(first, tmp_path / "first", quick())
    saved = ComposedModel.from_pretrained(tmp_path / "first", registry=train_zoo.registry)
    kept = run(saved, tmp_path / "kept", quick(max_steps=3))
    options: dict[str, Any] = {"start": tmp_path / "first", "registry": train_zoo.registry}
    for name, given in (("model", make_model()), ("declared", first.plan.composition)):
        result = fit(
            given,
            data=ROWS,
            eval_data=HELD_OUT,
            out=tmp_path / name,
            settings=quick(max_steps=3),
            show="none",
            **options,
        )
        assert result.metrics == kept.metrics
        found = ComposedModel.from_pretrained(tmp_path / name, registry=train_zoo.registry)
        assert_same(
            weights(found), weights(ComposedModel.from_pretrained(kept.checkpoint, registry=train_zoo.registry))
        )


def test_a_composition_starts_from_those_of_its_augmenters(train_zoo: Zoo, tmp_path: Path) -> None:
    parts = {name: Augmenter(name, attach=every(2)) for name in ("same", "other")}
    for name, part in parts.items():
        run(train_zoo.compose(part, trained=False), tmp_path / name, quick())
    both = train_zoo.compose(*parts.values(), trained=False)
    starts = [tmp_path / name for name in parts]
    # A rate of nearly zero: what comes out is what went in.
    run(both, tmp_path / "both", quick(max_steps=1, learning_rate=1e-12), start=starts)
    for folder in starts:
        single = weights(ComposedModel.from_pretrained(folder, registry=train_zoo.registry))
        torch.testing.assert_close({name: weights(both)[name] for name in single}, single)
    with pytest.raises(CheckpointError, match=r".*same: has .*, which one before it has too"):
        run(both, tmp_path / "twice", quick(), start=[*starts, tmp_path / "same"])
    with pytest.raises(CheckpointError, match=r"same: does not fit this composition: it lacks other@"):
        run(both, tmp_path / "half", quick(), start=tmp_path / "same")


def test_what_training_cannot_start_from_is_named(train_zoo: Zoo, make_model: MakeModel, tmp_path: Path) -> None:
    run(train_zoo.compose(Augmenter("same", attach=every(2)), trained=False), tmp_path / "other", quick(max_steps=1))
    for start, message in (("other", "does not fit this composition"), ("nothing", "nothing: ")):
        with pytest.raises((CheckpointError, DeclarationError), match=message):
            run(make_model(), tmp_path / "out", quick(), start=tmp_path / start)


def test_lengths_beyond_the_context_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(TrainingError, match=r"settings.max_length: got 100000, but the anchor's context is 192"):
        run(model, tmp_path / "a", quick(max_length=100_000))
    with pytest.raises(InputError, match="at most 192 are allowed"):
        run(model, tmp_path / "b", quick(), data=[{"text": "now " * 300}])


def test_an_unknown_device_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"settings.device: got 'gpu'"):
        run(make_model(), tmp_path, quick(device="gpu"))


def test_progress_is_plain_lines_where_there_is_no_terminal(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_model(), tmp_path, quick(log_every_steps=3), show="auto")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 0/6  eval loss ") and lines[0].endswith("(best)")
    assert [line.split()[1] for line in lines if "tokens/s" in line] == ["3/6", "6/6"]


def test_a_run_in_a_bucket_is_gone_on_with_from_there(
    train_zoo: Zoo, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = quick(max_steps=8, keep_checkpoints=1)
    whole = make_model()
    run(whole, tmp_path / "whole", settings)
    bucket = (tmp_path / "bucket").as_uri() + "/run"
    interrupt_after(3, monkeypatch)
    with pytest.raises(TrainingInterrupted, match="step-3"):
        run(make_model(), bucket, settings)
    monkeypatch.undo()
    # What a killed process left: a state without the description that is copied last.
    (tmp_path / "bucket/run/checkpoints/step-5").mkdir()
    with pytest.raises(TrainingError, match=rf"{bucket}: holds an unfinished run"):
        run(make_model(), bucket, settings)
    resumed = make_model()
    result = run(resumed, bucket, settings, resume=True)
    assert (result.checkpoint, result.steps) == (bucket, 8)
    assert_same(weights(resumed), weights(whole))
    assert [path.name for path in (tmp_path / "bucket/run/checkpoints").iterdir()] == ["step-8"]
    assert_same(
        weights(ComposedModel.from_pretrained(bucket, registry=train_zoo.registry)),
        weights(ComposedModel.from_pretrained(tmp_path / "whole", registry=train_zoo.registry)),
    )
    with pytest.raises(TrainingError, match="s4://x/run: cannot be read"):
        run(make_model(), "s4://x/run", settings)


def test_mlflow_gets_the_numbers_where_a_server_is_named(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("mlflow.tracking", reason="needs the extra 'mlflow'").MlflowClient
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'server'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "out"
    run(make_model(), out, quick(max_steps=2))
    run(make_model(), out, quick(max_steps=4), resume=True)
    run_id = json.loads((out / "mlflow.json").read_text())["run_id"]
    losses = [(metric.step, metric.value) for metric in client().get_metric_history(run_id, "loss")]
    records = [record for record in read_metrics(out / "metrics.jsonl") if "loss" in record]
    assert losses == [(record["step"], pytest.approx(record["loss"])) for record in records]
    assert client().get_run(run_id).info.status == "FINISHED"


def test_fit_is_offered_by_the_package() -> None:
    import calm_graph

    assert calm_graph.fit is fit


def test_an_image_augmenter_is_trained_from_rows(train_zoo: Zoo, tmp_path: Path) -> None:
    train_zoo.add("eye", "vit", seed=5)
    model = train_zoo.compose(Augmenter("eye", attach=every(2), reading="prompt"), trained=False)
    # The answer is in the picture only; with the other picture it must become less likely.
    rows = [
        {"prompt": "Which?", "completion": answer, "augmenter_inputs": {"eye": {"pixel_values": picture}}}
        for answer, picture in (("yes", torch.ones(3, 16, 16)), ("no", -torch.ones(3, 16, 16)))
        for _ in range(4)
    ]
    result = fit(model, data=rows, out=tmp_path, settings=quick(max_steps=60, learning_rate=1e-2), show="none")
    with torch.no_grad():
        batch = load_dataset(rows, model.tokenizer, max_length=None).batch(range(8))
        seen = model(**batch).loss
        batch["augmenter_inputs"]["eye"]["pixel_values"] *= -1
        assert model(**batch).loss > seen + 1
    assert result.steps == 60


def test_rows_must_agree_on_augmenter_inputs(train_zoo: Zoo) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "augmenter_inputs": {"eye": {"pixel_values": torch.zeros(shape)}}}
        for shape in ((3, 16, 16), (3, 8, 8))
    ]
    tokenizer = train_zoo.compose(Augmenter("same", attach=every(2))).tokenizer
    with pytest.raises(InputError, match=r"data\[1\].*\(3, 8, 8\).*data\[0\].*\(3, 16, 16\)"):
        load_dataset(rows, tokenizer, max_length=None)


def only_the_fox(prompt: Prompt) -> tuple[str, ...]:
    return prompt.augmenters if "fox" in prompt.text else ()


def test_a_selector_switches_augmenters_off_row_by_row(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    rows = [{"prompt": "the fox", "completion": " jumps"}, {"prompt": "so", "completion": " long"}]
    settings = quick(selector=f"{__name__}:only_the_fox", max_steps=1, batch_size=2)
    recorded: list[torch.Tensor] = []
    hook = next(iter(model.attachments.values())).output.register_full_backward_hook(
        lambda _, __, gradients: recorded.append(gradients[0].abs().sum(dim=(1, 2)))
    )
    fit(model, data=rows, out=tmp_path, settings=settings, show="none")
    hook.remove()
    (gradient_B,) = recorded
    assert sorted((gradient_B > 0).tolist()) == [False, True]
    with pytest.raises(InputError, match="selector: got 'nowhere:f'"):
        fit(model, data=rows, out=tmp_path / "b", settings=quick(selector="nowhere:f"), show="none")
