"""Runs on real Ray workers: the same steps as in one process, and what happens when something dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from calm_graph import Composition, every
from calm_graph.declare.composition import Augmenter
from calm_graph.errors import TrainingError
from calm_graph.train import TrainResult, fit
from calm_graph.train.metrics import read_metrics
from calm_graph.train.ray_trainer import cpus_per_worker
from calm_graph.train.state import list_states
from tests.model.pico import Zoo
from tests.train.conftest import HELD_OUT, ROWS, quick

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
COMPOSITION = Composition(
    name="prices",
    anchor="anchor",
    augmenters=[Augmenter("same", attach=every(2)), Augmenter("other", attach=every(2), reading="prompt")],
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def run(
    zoo: Zoo, out: Path, *, resume: bool = False, eval_data: Any = None, keep: Any = None, **changes: Any
) -> TrainResult:
    settings = quick(**{"batch_size": 7, "cpus_per_worker": 1, **changes})
    return fit(
        COMPOSITION,
        data=ROWS,
        eval_data=eval_data,
        keep=keep,
        out=out,
        settings=settings,
        registry=zoo.registry,
        resume=resume,
        show="none",
    )


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Everything a resumed run would start from, except torch's random numbers."""
    newest = list_states(out / "checkpoints")[-1]
    tensors = load_file(newest / "composition.safetensors") | load_file(newest / "training.safetensors")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("rng.")}


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], *, tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(
            tensor, right[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_nothing_is_left_over(out: Path, *, keep: int = 2) -> None:
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert len(list((out / "checkpoints").iterdir())) <= keep


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(out / "metrics.jsonl") if "loss" in record]


def worker_processes() -> list[psutil.Process]:
    """The training workers below this process, whoever started the cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def when(condition: Callable[[], bool], *, within_s: float = 90) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def reached(out: Path, step: int) -> bool:
    records = read_metrics(out / "metrics.jsonl")
    return bool(records) and records[-1]["step"] >= step


def test_two_workers_do_the_steps_of_one_process(cluster: None, train_zoo: Zoo, tmp_path: Path) -> None:
    """15 samples for 2 workers in 3 pieces, and an epoch ends with 1, which leaves one worker nothing to do."""
    kept = ROWS[:4]
    assert (len(ROWS) + len(kept)) % 15 == 1
    settings = {"batch_size": 15, "max_steps": 20, "gradient_accumulation_steps": 3, "checkpoint_every_steps": 10}
    for out, num_workers in (("one", 0), ("two", 2)):
        run(train_zoo, tmp_path / out, num_workers=num_workers, keep=kept, **settings)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), tolerance=1e-5)
    assert_nothing_is_left_over(tmp_path / "two")


def test_one_worker_trains_a_model_in_place_bit_for_bit(cluster: None, train_zoo: Zoo, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = [train_zoo.compose(*COMPOSITION.augmenters, trained=True) for _ in range(2)]
    try:
        results = [
            fit(model, data=ROWS, eval_data=HELD_OUT, out=tmp_path / str(count), show="none",
                settings=quick(batch_size=7, num_workers=count, cpus_per_worker=1))
            for model, count in zip(models, (0, 1), strict=True)
        ]  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert results[1].metrics == results[0].metrics
    assert_close(weights(tmp_path / "0"), weights(tmp_path / "1"), tolerance=0)
    states = [dict(model.attachments.state_dict()) for model in models]
    assert_close(states[0], states[1], tolerance=0)


def test_workers_that_share_out_the_frozen_models_do_the_same_steps(
    cluster: None, train_zoo: Zoo, tmp_path: Path
) -> None:
    """Uneven shares, pieces and evaluation batches: no worker may wait for a call that another does not make."""
    settings = {"max_steps": 8, "gradient_accumulation_steps": 2, "eval_data": HELD_OUT}
    run(train_zoo, tmp_path / "one", **settings)
    run(train_zoo, tmp_path / "two", num_workers=2, sharding="fsdp", **settings)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), tolerance=1e-5)


LONG = {"max_steps": 150, "checkpoint_every_steps": 20}


@pytest.fixture(scope="module")
def whole(cluster: None, train_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that nothing happened to, by their number of workers; one worker does what one process does, bit for bit."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(train_zoo, folder / "1", **LONG)
    finally:
        torch.set_num_threads(threads)
    run(train_zoo, folder / "2", num_workers=2, **LONG)
    return {1: folder / "1", 2: folder / "2"}


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "tolerance"), [(1, 0.0), (2, 1e-6)])
def test_a_killed_worker_is_replaced_and_changes_nothing(
    whole: dict[int, Path], train_zoo: Zoo, tmp_path: Path, num_workers: int, tolerance: float
) -> None:
    steps: list[int] = []

    def kill() -> None:
        when(lambda: reached(tmp_path / "out", 50))
        worker_processes()[-1].kill()
        steps.append(read_metrics(tmp_path / "out" / "metrics.jsonl")[-1]["step"])

    during(kill, lambda: run(train_zoo, tmp_path / "out", num_workers=num_workers, **LONG))
    assert 50 <= steps[0] < 150, "the worker was killed too late to tell anything"
    assert_close(weights(whole[num_workers]), weights(tmp_path / "out"), tolerance=tolerance)
    assert losses(tmp_path / "out") == pytest.approx(losses(whole[num_workers]), rel=1e-6)
    assert_nothing_is_left_over(tmp_path / "out")


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(whole: dict[int, Path], train_zoo: Zoo, tmp_path: Path) -> None:
    def stop() -> None:
        when(lambda: reached(tmp_path / "out", 50))
        worker_processes()[-1].suspend()

    during(stop, lambda: run(train_zoo, tmp_path / "out", num_workers=2, hang_timeout_s=20.0, **LONG))
    assert_close(weights(whole[2]), weights(tmp_path / "out"), tolerance=1e-6)
    assert_nothing_is_left_over(tmp_path / "out")


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_not_tried_again(cluster: None, train_zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the loss is not a finite number, in the rows data\[.*Look at"):
        run(train_zoo, tmp_path, num_workers=2, learning_rate=1e30, max_grad_norm=None, max_steps=50)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.slow
def test_a_lost_worker_that_is_not_replaced_is_named(cluster: None, train_zoo: Zoo, tmp_path: Path) -> None:
    def kill() -> None:
        when(lambda: reached(tmp_path, 40))
        worker_processes()[-1].kill()

    with pytest.raises(TrainingError, match=r"worker \d failed, after 0 replacements.*step-\d+; go on with resume"):
        during(kill, lambda: run(train_zoo, tmp_path, num_workers=2, max_steps=400, max_failures=0))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    cluster: None, train_zoo: Zoo, tmp_path: Path
) -> None:
    settings = {"max_steps": 12, "num_workers": 1, "max_failures": 0, "keep_checkpoints": 1}
    run(train_zoo, tmp_path / "whole", **{**settings, "num_workers": 0})
    state_bytes = sum(file.stat().st_size for file in (tmp_path / "whole").rglob("*") if file.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={3 * state_bytes}", "tmpfs", disk]).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(3 * state_bytes - state_bytes // 3))
        with pytest.raises(TrainingError, match=r"No space left"):
            run(train_zoo, disk / "out", **settings)
        assert all((state / "training.json").exists() for state in list_states(disk / "out/checkpoints"))
        ballast.unlink()
        run(train_zoo, disk / "out", **settings, resume=True)
        assert_close(weights(tmp_path / "whole"), weights(disk / "out"), tolerance=1e-6)
        assert_nothing_is_left_over(disk / "out")
    finally:
        subprocess.run(["umount", disk], check=True)


DRIVER = """
import sys
from pathlib import Path
from calm_graph.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_is_stopped_or_killed_is_gone_on_from(train_zoo: Zoo, tmp_path: Path, number: int) -> None:
    """The driver starts a cluster of its own; whatever ends it, nothing of that stays behind."""
    (tmp_path / "prices.json").write_text(COMPOSITION.model_dump_json())
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    cards = tmp_path / "cards"
    cards.mkdir()
    for name in ("anchor", "same", "other"):
        (cards / f"{name}.json").write_text(json.dumps({"name": name, "source": f"folder:{train_zoo.folder / name}"}))
    command = [
        sys.executable, "-c", DRIVER, "train", "prices.json", "--data", "train.jsonl", "--registry", str(cards),
        "--out", "out", "--num-workers", "1", "--max-steps", "200", "--device", "cpu", "--batch-size", "7",
        "--set", "checkpoint_every_steps=20", "--set", "cpus_per_worker=1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        when(lambda: reached(out, 50))
        # Of the cluster's own daemons, a few that only watch the others take a while to notice.
        below = worker_processes() + [p for p in psutil.process_iter() if p.name() in ("raylet", "gcs_server")]
        driver.send_signal(number)
        _, said = driver.communicate(timeout=60)
    finally:
        driver.kill()
    stopped_at = read_metrics(out / "metrics.jsonl")[-1]["step"]
    assert 50 <= stopped_at < 200
    if number == signal.SIGKILL:
        assert stopped_at - 20 <= int(list_states(out / "checkpoints")[-1].name.removeprefix("step-")) <= stopped_at
    else:
        assert driver.returncode == 130
        assert f"interrupted at step {stopped_at} of 200; saved " in said and "--resume" in said
        assert list_states(out / "checkpoints")[-1].name == f"step-{stopped_at}"
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    whole = [argument if argument != "out" else "whole" for argument in command]
    whole[whole.index("--num-workers") + 1] = "0"
    subprocess.run(whole, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert_close(weights(tmp_path / "whole"), weights(out), tolerance=0)
    assert_nothing_is_left_over(out)


TWO_NODES = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from calm_graph.train.metrics import read_metrics
from registry import ModelCard
from tests.model.pico import Zoo
from tests.train.test_ray import reached, run, when

zoo, out = Zoo(Path(sys.argv[1])), Path(sys.argv[2])
for name in ("anchor", "same", "other"):
    zoo.registry.add(ModelCard(name=name, source=f"folder:{zoo.folder / name}"))
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
def lose_a_node():
    when(lambda: reached(out, 50))
    cluster.remove_node(second, allow_graceful=False)
threading.Thread(target=lose_a_node, daemon=True).start()
result = run(zoo, out, num_workers=(1, 2), max_steps=300, checkpoint_every_steps=20, learning_rate=1e-4)
print(result.steps, len([node for node in ray.nodes() if node["Alive"]]))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_lost_node_leaves_the_others_to_go_on(train_zoo: Zoo, tmp_path: Path) -> None:
    """`num_workers=(1, 2)`: two workers on two nodes, then the raylet of one is killed."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(train_zoo.folder), str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray says in between what it lost.
    assert "300 1" in done.stdout.splitlines(), done.stdout[-3000:]
    # Two workers and one add up in another order. At the learning rate of the other tests that difference has grown a
    # thousandfold after 300 steps; at this one a step too many or too few is five times the tolerance.
    run(train_zoo, tmp_path / "whole", max_steps=300, checkpoint_every_steps=20, learning_rate=1e-4)
    assert_close(weights(tmp_path / "whole"), weights(tmp_path / "out"), tolerance=2e-5)
    assert_nothing_is_left_over(tmp_path / "out")


def during(act: Callable[[], None], work: Callable[[], object]) -> None:
    """Let `act` happen in a thread while `work` goes on; its failures count."""
    import threading

    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        work()
    finally:
        thread.join()
        assert not failures, failures


def test_what_the_cluster_does_not_have_is_refused_at_once(cluster: None, train_zoo: Zoo, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TrainingError, match=r"num_workers: got 3, but the cluster has 2 CPUs on 1 nodes, room for 2"):
        run(train_zoo, tmp_path, num_workers=3)
    with pytest.raises(TrainingError, match=r"num_workers: got 1, but the cluster has 0 GPUs"):
        run(train_zoo, tmp_path, num_workers=1, use_gpu=True)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TrainingError, match=r"file/out: cannot be written .* choose another out"):
        run(train_zoo, file / "out", num_workers=1)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/result.json").write_text("{}")
    (tmp_path / "old/settings.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"old: holds a finished run; go on with resume"):
        run(train_zoo, tmp_path / "old", num_workers=1)
    assert time.monotonic() - began < 5
    assert not (tmp_path / "settings.json").exists()


@pytest.mark.parametrize(
    ("nodes", "num_workers", "expected"),
    [([4], 1, 4), ([4], 3, 1), ([4, 4], 3, 2), ([3, 1], 2, 1), ([16, 16], (2, 8), 4), ([2], 4, 1)],
)
def test_workers_share_the_cpus_of_the_nodes(nodes: list[int], num_workers: Any, expected: int) -> None:
    found = cpus_per_worker(quick(num_workers=num_workers), [{"CPU": float(count)} for count in nodes])
    assert found == expected


@pytest.mark.slow
def test_workers_of_our_own_cluster_come_as_soon_as_a_plain_run() -> None:
    """Ray would run them at nice 15, behind whatever else a machine does."""
    program = (
        "import os, ray\n"
        "from calm_graph.declare.settings import TrainSettings\n"
        "from calm_graph.train.ray_trainer import _cluster\n"
        "with _cluster(TrainSettings(num_workers=1)):\n"
        "    print(ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "0", found.stderr
