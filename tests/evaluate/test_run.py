"""A run asks each thing once, goes on where it was stopped, and reports what it found."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calm_graph.cli import main
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.reports.files import ResultsFolder, merge_files
from calm_graph.evaluate.reports.measured import SUMS, Measured
from calm_graph.evaluate.reports.plots import plots
from calm_graph.evaluate.reports.report import write_report
from calm_graph.evaluate.reports.results import Results, Row, read_results
from calm_graph.evaluate.reports.tables import text
from calm_graph.evaluate.run import Candidate, Evaluated, evaluate
from calm_graph.evaluate.systems.base import Decoding, Done
from calm_graph.evaluate.tasks.task import Task
from calm_graph.interrupts import StopRequest
from tests.evaluate.conftest import write_rows


class Calculator:
    """Adds, and is wrong about every `every`-th sum; a real system, if a plain one."""

    few_shot = False

    def __init__(self, name: str, *, every: int = 0, identity: str | None = None) -> None:
        self.name, self.every, self.identity = name, every, identity or name
        self.asked: list[str] = []

    def generate(self, prompts: Sequence[str], decoding: Decoding, *, done: Done) -> list[list[str]]:
        answers = []
        for index, prompt in enumerate(prompts):
            self.asked.append(prompt)
            one, other = map(int, prompt.rstrip("=").split("+"))
            wrong = self.every and (one + other) % self.every == 0
            answers.append([str(one + other + bool(wrong))])
            done(index)
        return answers

    def score(self, prompts: Sequence[str], completions: Sequence[str], *, done: Done) -> list[float]:
        raise EvaluationError(f"{self.name}: cannot score")


def task(folder: Path, language: str, **changes: object) -> Task:
    rows = [{"q": f"{n}+{n + 1}=", "a": str(2 * n + 1)} for n in range(200)]
    data = write_rows(folder / f"{language}.jsonl", rows)
    fields = {"suite": "s", "name": "sum", "language": language, "data": data, "prompt": "{q}", "reference": "{a}"}
    return Task.parse({**fields, "metrics": ["accuracy"], **changes}, where="here")


def run(
    tasks: Sequence[Task], systems: Sequence[Calculator], folder: Path, stop: StopRequest | None = None
) -> Evaluated:
    def candidate(system: Calculator) -> Candidate:
        return Candidate(system.name, lambda: system)

    return evaluate(tasks, list(map(candidate, systems)), predictions=folder / "p", show="none", stop=stop)


def test_values_averages_and_differences(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "a"), task(tmp_path, "b")]
    found = run(tasks, [Calculator("anchor", every=5), Calculator("composed", every=25)], tmp_path)
    values = {(row.language, row.system): row for row in found.results.rows}
    assert values["a", "anchor"].value == 80 and values["a", "composed"].value == 96
    assert values["average", "composed"].value == 96 and values["average", "composed"].count == 400
    assert values["a", "anchor"].low < 80 < values["a", "anchor"].high
    compared = {each.language: each for each in found.results.differences}
    assert compared["a"].value == 16 and compared["a"].low > 0 and compared["a"].against == "anchor"
    # The same rows in both languages: the average is as uncertain as each of them.
    assert compared["average"].low == pytest.approx(compared["a"].low)


def test_systems_trained_on_some_rows_are_points_of_a_curve(tmp_path: Path) -> None:
    names = ("composed", "composed_rows_100", "composed_rows_300")
    found = run([task(tmp_path, "a")], [Calculator(name) for name in names], tmp_path).results
    assert [(row.system, row.train_rows) for row in found.rows] == [
        ("composed", None),
        ("composed", 100),
        ("composed", 300),
    ]
    assert len({row.key for row in found.rows}) == 3


def test_nothing_is_asked_twice_and_only_what_changed_again(tmp_path: Path) -> None:
    first, again, other = Calculator("x"), Calculator("x"), Calculator("x", identity="another")
    run([task(tmp_path, "a", limit=50)], [first], tmp_path)
    run([task(tmp_path, "a")], [again], tmp_path)
    assert len(first.asked) == 50 and len(again.asked) == 150 and not set(first.asked) & set(again.asked)
    run([task(tmp_path, "a")], [other], tmp_path)
    assert len(other.asked) == 200
    longer = Calculator("x")
    run([task(tmp_path, "a", max_new_tokens=7)], [longer], tmp_path)
    assert len(longer.asked) == 200


def test_a_stopped_run_goes_on_also_after_a_torn_line(tmp_path: Path) -> None:
    stop = StopRequest()

    class Stopping(Calculator):
        def generate(self, prompts: Sequence[str], decoding: Decoding, *, done: Done) -> list[list[str]]:
            stop.requested = len(self.asked) >= 100
            return super().generate(prompts, decoding, done=done)

    first, second = Stopping("x"), Calculator("x")
    stopped = run([task(tmp_path, "a")], [first], tmp_path, stop=stop)
    assert stopped.stopped and not stopped.results.rows
    (file,) = (tmp_path / "p").iterdir()
    kept = len(file.read_text().splitlines())
    assert 64 <= kept < 200
    with file.open("a") as open_file:
        open_file.write('{"key": "torn')
    found = run([task(tmp_path, "a")], [second], tmp_path)
    assert len(second.asked) == 200 - kept
    assert found.results.rows[0].value == 100 and not found.stopped
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_what_a_system_cannot_do_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "a", metrics=["bits_per_byte"]), task(tmp_path, "b", metrics=["bits_per_byte", "accuracy"])]
    found = run(tasks, [Calculator("x"), Calculator("y")], tmp_path)
    assert found.problems == [f"{name}, s/sum/{task}: {name}: cannot score" for name in "xy" for task in "ab"]
    # What it can is measured, of the same task too.
    assert [(row.system, row.language, row.metric) for row in found.results.rows] == [
        ("x", "b", "accuracy"), ("y", "b", "accuracy")
    ]  # fmt: skip


def test_results_are_merged_and_written_as_a_report(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "a"), task(tmp_path, "b")]
    found = run(tasks, [Calculator("anchor", every=5), Calculator("composed")], tmp_path).results
    found.rows += [
        Row(
            suite="s", task="sum", language="c", system="composed", seed=0, metric="accuracy",
            value=size / 10, low=1, high=99, count=9, train_rows=size,
        )
        for size in (100, 300)
    ]  # fmt: skip
    write_report(found, tmp_path / "out", command="calm-graph evaluate <s>")
    read = read_results(tmp_path / "out/results.json").rows
    assert [row.key for row in read] == [row.key for row in found.rows]
    assert [row.low for row in read] == pytest.approx([row.low for row in found.rows], abs=1e-5)
    merged = merge_files([tmp_path / "out", tmp_path / "out/results.json"])
    assert len(merged.rows) == len(found.rows) and len(merged.differences) == len(found.differences)
    changed = Results([Row(**{**{n: getattr(found.rows[0], n) for n in Row.__slots__}, "value": 1.0})])
    assert merged.merged(changed).rows[0].value == 1.0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.md", "report.html", "results.json", "s.accuracy.png", "s.accuracy.data_size.png"}
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<svg") == 2 and "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert "evaluate &lt;s&gt;" in page
    assert not re.search(r'(src|href)="https?:', page.replace("xlink:", "x"))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    text = (tmp_path / "out/report.md").read_text()
    assert "| a | 80.0 [" in text and "**100.0**" in text and "composed - anchor" in text
    with pytest.raises(EvaluationError, match="no file of results"):
        read_results(tmp_path / "a.jsonl")


def value(seed: int, of: float, *, language: str = "a", system: str = "composed") -> Row:
    return Row(
        suite="s", task="sum", language=language, system=system, seed=seed, metric="accuracy",
        value=of, low=of - 1, high=of + 1, count=9,
    )  # fmt: skip


def added(folder: Path, measured: Sequence[Measured]) -> Results:
    results = ResultsFolder(folder)
    results.add(measured)
    return results.results


def test_each_task_has_a_curve_of_its_own_over_the_number_of_training_rows(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "", name=name) for name in ("sum", "product")]
    found = run(tasks, [Calculator(f"composed_rows_{size}", every=size) for size in (3, 30)], tmp_path).results
    (curve,) = plots(found)
    assert curve.name == "s.accuracy.data_size"
    assert all(text in curve.svg for text in (">sum composed<", ">product composed<", ">30<"))


def written(folder: Path, *rows: Row) -> Path:
    Results(list(rows)).write(folder / "results.json")
    return folder


def test_seeds_and_checkpoints_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [
        written(tmp_path / str(seed), value(seed, 40.0 + seed), value(seed, 7.0, system="anchor")) for seed in range(3)
    ]
    kept = written(tmp_path / "kept", value(0, 77.0))
    command = ["report", *map(str, seeds), f"composed_kept={kept}", "--out", str(tmp_path / "out"), "--title", "Seeds"]
    assert main(command) == 0
    lines = {line.split("  ")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert "40.0 [39.0, 41.0]" in lines["a, seed 0"] and "77.0* [76.0, 78.0]" in lines["a, seed 0"]
    # Of a system with one seed of three there is no mean.
    assert re.search(r"41\.0\* \[40\.0, 42\.0\] +7\.0 \[7\.0, 7\.0\] +-$", lines["a, mean of 3 seeds"])
    assert (tmp_path / "out/report.md").read_text().startswith("# Seeds\n")
    elsewhere = written(tmp_path / "elsewhere", value(0, 40.0 * (1 + 1e-6)))  # summed in another order
    assert main(["report", str(seeds[0]), str(elsewhere), "--out", str(tmp_path / "out")]) == 0
    again = written(tmp_path / "again", value(0, 41.0))
    assert main(["report", str(seeds[0]), str(again), "--out", str(tmp_path / "out")]) == 1
    assert "composed's accuracy in s/sum/a of seed 0 too, and it is 41, not 40" in capsys.readouterr().err


def test_an_average_over_other_languages_is_left_out(tmp_path: Path) -> None:
    one = written(tmp_path / "one", value(0, 40.0), value(0, 40.0, language="average"))
    two = written(tmp_path / "two", value(0, 50.0, language="b"), value(0, 50.0, language="average"))
    assert [row.language for row in merge_files([one, two]).rows] == ["a", "b"]
    assert [row.language for row in merge_files([one, one]).rows] == ["a", "average"]


def test_systems_of_several_evaluations_are_compared_row_by_row(tmp_path: Path) -> None:
    """Averages and differences are those of one evaluation of everything, whatever was evaluated when and where."""
    tasks = [task(tmp_path, "a"), task(tmp_path, "b", limit=120)]
    systems = [Calculator("composed", every=25), Calculator("anchor", every=5), Calculator("lora", every=7)]
    found = run(tasks, systems, tmp_path)
    whole = found.results.as_dict()
    for each in found.measured:
        added(tmp_path / each.system, [each])
        one_after_the_other = added(tmp_path / "together", [each])
    side_by_side = merge_files([tmp_path / system.name for system in systems])
    for found in (one_after_the_other, side_by_side, read_results(tmp_path / "together/results.json")):
        for name in ("rows", "differences"):
            assert sorted(map(str, found.as_dict()[name])) == sorted(map(str, whole[name]))
    (average,) = (each for each in side_by_side.differences if each.language == "average" and each.against == "lora")
    line = f"composed - lora: +{average.value:.1f} [{average.low:.1f}, {average.high:.1f}]"
    assert text(side_by_side).splitlines().count(line) == 1
    kept = merge_files([tmp_path / "composed", tmp_path / "anchor"], names=["kept", None])
    assert {(each.system, each.against) for each in kept.differences} == {("kept", "anchor")}


def test_means_over_seeds_are_compared_on_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A system of one seed is set beside the mean of several: what draws of the rows leave of the difference."""
    tasks = [task(tmp_path, "a"), task(tmp_path, "b")]
    seeds = [run(tasks, [Calculator("composed", every=every)], tmp_path / str(every)).measured for every in (25, 9, 11)]
    one = run(tasks, [Calculator("lora", every=7)], tmp_path).measured
    for seed, measured in enumerate(seeds):
        added(tmp_path / str(seed), [replace(each, seed=seed) for each in measured])
    added(tmp_path / "lora", one)
    assert main(["report", *(str(tmp_path / name) for name in ("0", "1", "2", "lora")), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    (found,) = (each for each in read_results(tmp_path / "results.json").differences
                if each.language == "a" and each.seed is None)  # fmt: skip
    right = np.mean([measured[0].sums[:, 0] for measured in seeds], axis=0) - one[0].sums[:, 0]
    drawn = np.random.default_rng(1).choice(right, (20_000, 200)).mean(axis=1) * 100
    assert found.value == pytest.approx(100 * right.mean(), abs=1e-5)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.5)
    assert (found.system, found.against, found.num_seeds, found.num_seeds_against) == ("composed", "lora", 3, 1)
    assert re.search(r"^composed - lora, mean of 3 against 1: \+\d\.\d \[", shown, re.MULTILINE)
    assert "| mean of 3 against 1 | composed - lora | +" in (tmp_path / "report.md").read_text()


def test_means_over_seeds_with_rows_of_their_own(tmp_path: Path) -> None:
    """Each seed may ask other questions, if it asks all systems the same ones."""
    measured = [
        replace(each, seed=seed)
        for seed, limit in ((0, 150), (1, 120))
        for each in run(
            [task(tmp_path, "a", limit=limit)], [Calculator("composed"), Calculator("anchor", every=5)], tmp_path
        ).measured
    ]
    found = added(tmp_path / "all", measured).differences
    assert [(each.seed, each.num_seeds) for each in found] == [(0, 1), (1, 1), (None, 2)]
    assert found[2].value == pytest.approx((found[0].value + found[1].value) / 2)
    assert [each.seed for each in added(tmp_path / "fewer", measured[:3]).differences] == [0]
    # A seed more of one of them: what was a mean over all seeds is none any more.
    assert [each.seed for each in added(tmp_path / "all", [replace(measured[0], seed=2)]).differences] == [0, 1]


def test_values_of_other_rows_are_not_compared(tmp_path: Path) -> None:
    out, composed, anchor = tmp_path / "out", Calculator("composed"), Calculator("anchor", every=5)
    added(out, run([task(tmp_path, "a")], [composed, anchor], tmp_path).measured)
    fewer = added(out, run([task(tmp_path, "a", limit=50)], [anchor], tmp_path).measured)
    assert [(row.system, row.count) for row in fewer.rows] == [("composed", 200), ("anchor", 50)]
    assert not fewer.differences
    # Without an average, differences are told by their languages.
    of_languages = run([task(tmp_path, "c"), task(tmp_path, "d")], [composed, anchor], tmp_path).measured
    found = added(tmp_path / "two", [each for each in of_languages if (each.system, each.language) != ("anchor", "d")])
    assert re.findall(r"^composed - .*?:", text(found), re.MULTILINE) == ["composed - anchor:"]
    found = added(tmp_path / "three", [*of_languages, *run([task(tmp_path, "e")], [composed], tmp_path).measured])
    assert re.findall(r"^composed - .*?:", text(found), re.MULTILINE) == [
        "composed - anchor, c:", "composed - anchor, d:"
    ]  # fmt: skip
    # In a language more than the others there is no average to set beside theirs.
    more = added(out, run([task(tmp_path, "b")], [composed], tmp_path).measured)
    assert [row.system for row in more.rows if row.language == "average"] == ["composed"]


def test_damaged_sums_are_named(tmp_path: Path) -> None:
    added(tmp_path / "out", run([task(tmp_path, "a")], [Calculator("x")], tmp_path).measured)
    with (tmp_path / "out" / SUMS).open("a") as file:
        file.write('{"suite": "torn\n')
    with pytest.raises(EvaluationError, match=r"sums.jsonl: damaged .* evaluate again, answers are kept"):
        merge_files([tmp_path / "out"])
