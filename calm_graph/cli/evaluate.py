"""`calm-graph evaluate`: measure a composition beside its parts and its alternatives."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calm_graph.cli.common import Subparsers, add_command, add_show_argument, read_changes
from calm_graph.errors import InputError

if TYPE_CHECKING:
    from calm_graph.evaluate.run import Candidate
    from calm_graph.evaluate.select import Setup
    from calm_graph.evaluate.tasks.task import Task

_FIELDS = ("prompt", "reference", "target", "answer", "metrics", "shots_from", "stop", "max_new_tokens", "language")
"""Fields of a task of one's own that have an option."""


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add evaluate."""
    parser = add_command(
        commands,
        "evaluate",
        summary="measure a trained composition, its parts and its alternatives on a suite or on tasks of your own",
        examples="""
        calm-graph evaluate --list
        calm-graph evaluate translation --checkpoint runs/indonesia --languages ban,min --limit 200 --out results
        calm-graph evaluate qa.jsonl --prompt "{question}" --reference " {answer}" --metrics accuracy --checkpoint X
        calm-graph evaluate my_tasks.py --checkpoint runs/qa --systems anchor,composed --show plain
        calm-graph evaluate multi --checkpoint runs/both --systems composed_selected --selector gate.safetensors
        calm-graph evaluate translation --checkpoint runs/x --baselines lora,merge --train-data train.jsonl
        """,
    )
    parser.add_argument(
        "tasks", metavar="SUITE|FILE", nargs="?", help="a suite, a .py, .yaml or .json file of tasks, or a .jsonl"
    )
    parser.add_argument("--list", action="store_true", help="show suites, tasks, metrics and systems, and leave")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", help="a folder that `train` wrote, or a hub id")
    parser.add_argument("--systems", metavar="NAME,...", type=_names, help="default: anchor, augmenter, composed")
    parser.add_argument(
        "--selector",
        metavar="PACKAGE.MODULE:FUNCTION|FILE",
        help="for composed_selected: what chooses the augmenters of each prompt, such as a gate of fit-selector",
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="folder of the data; default: CALM_GRAPH_DATA")
    parser.add_argument("--languages", metavar="NAME,...", type=_names, help="only tasks of these languages")
    parser.add_argument("--only", metavar="TASK,...", type=_names, help="only tasks of these names")
    parser.add_argument("--metrics", metavar="NAME,...", type=_names, help="only these of each task's metrics")
    parser.add_argument("--limit", metavar="N", type=int, help="only so many rows of each task, always the same ones")
    parser.add_argument("--shots", metavar="K", type=int, help="examples before each prompt, instead of the task's own")
    parser.add_argument("--out", metavar="DIR", type=Path, help="of all that is kept; default: runs/evaluate/SUITE")
    parser.add_argument("--dtype", default="float32", help="of the frozen weights; default: float32")
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="prompts at the same time; default: 16")
    parser.add_argument("--seed", type=int, default=0, help="of examples and draws; default: 0")
    add_show_argument(parser)
    others = parser.add_argument_group("baselines, beside the systems")
    others.add_argument("--baselines", metavar="NAME,...", type=_names, default=(), help="`--list` shows them")
    others.add_argument(
        "--train-data", action="append", metavar="DATA", help="what the checkpoint was trained on, to train them on"
    )
    others.add_argument(
        "--eval-data", action="append", metavar="DATA", help="its held-out rows, by which the best step is chosen"
    )
    others.add_argument(
        "--learning-rates", metavar="NAME=RATE,...", type=_rates, default={}, help="of baselines that are trained"
    )
    others.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another setting of `train` than the composition's run had",
    )
    others.add_argument(
        "--replace", metavar="NAME=CARD,...", type=_pairs, default={}, help="for composed_vanilla: read CARD instead"
    )
    others.add_argument("--merge-base", metavar="CARD", help="what the augmenter was trained from, for merge")
    own = parser.add_argument_group("a task of your own (with a .jsonl)")
    own.add_argument("--prompt", metavar="TEMPLATE", help="over the fields of a row, such as '{question}'")
    own.add_argument("--reference", metavar="TEMPLATE", help="the right completion, white space included")
    own.add_argument("--target", metavar="TEMPLATE", help="what an answer is compared with; default: the reference")
    own.add_argument("--answer", choices=("text", "packed", "number"), help="what of an answer counts for accuracy")
    own.add_argument("--shots-from", metavar="FILE", help="rows of the examples")
    own.add_argument("--stop", metavar="TEXT", action="append", help="ends an answer; may be repeated")
    own.add_argument("--max-new-tokens", metavar="N", type=int, help="the most of an answer")
    own.add_argument("--language", metavar="NAME", help="what results call it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate, and write what was found.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code: 0, 1 if something could not be evaluated, 130 if it was stopped.

    Raises:
        InputError: An option is missing.
    """
    if options.list:
        print(_listing())
        return 0
    if options.tasks is None:
        raise InputError("SUITE|FILE is missing; `calm-graph evaluate --list` shows what there is")
    tasks = read_tasks(options)
    if options.checkpoint is None:
        raise InputError("--checkpoint is missing: what should be evaluated?")
    _check_used(options)
    from calm_graph.evaluate.reports.files import ResultsFolder
    from calm_graph.evaluate.reports.report import write_report
    from calm_graph.evaluate.reports.tables import text
    from calm_graph.evaluate.run import check_tasks, evaluate
    from calm_graph.evaluate.select import Setup, select
    from calm_graph.interrupts import stop_on_signals

    check_tasks(tasks, data=options.data, seed=options.seed)
    out = options.out or Path("runs/evaluate") / Path(options.tasks).stem
    folder = ResultsFolder(out)
    setup = Setup(
        checkpoint=options.checkpoint,
        dtype=options.dtype,
        batch_size=options.batch_size,
        seed=options.seed,
        data=options.data,
        tasks=tasks,
        out=out,
        selector=options.selector,
    )
    candidates = [*select(options.systems, setup), *_baselines(options, setup)]
    try:
        with stop_on_signals(setup.stop) as stop:
            found = evaluate(
                tasks,
                candidates,
                predictions=setup.predictions,
                data=options.data,
                seed=options.seed,
                show=options.show,
                stop=stop,
                on_measured=folder.add,
            )
    except KeyboardInterrupt as error:  # while a baseline was being trained
        print(error, "the same command goes on where it was", sep="; ", file=sys.stderr)
        return 130
    if found.measured:
        write_report(folder.results, out, command=_command(options))
        print(text(folder.results.of({(task.suite, task.name) for task in tasks})))
        print(f"\n{out}: report.html, report.md, results.json")
    for problem in found.problems:
        print(problem, file=sys.stderr)
    if found.stopped:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 1 if found.problems else 0


def _baselines(options: argparse.Namespace, setup: Setup) -> list[Candidate]:
    from calm_graph.evaluate.baselines.select import BaselineOptions, select_baselines

    chosen = BaselineOptions(
        train_data=options.train_data,
        eval_data=options.eval_data,
        changes=read_changes(options.changes),
        learning_rates=options.learning_rates,
        replaced=options.replace,
        merge_base=options.merge_base,
        show=options.show,
    )
    return select_baselines(options.baselines, setup, chosen)


def _check_used(options: argparse.Namespace) -> None:
    """Refuse options that none of the baselines asked for would look at."""
    from calm_graph.evaluate.baselines.ablations import is_ablation
    from calm_graph.evaluate.baselines.select import UNTRAINED

    trained = [name for name in options.baselines if name not in UNTRAINED]
    for flag, given, users, kind in (
        ("--train-data", options.train_data, trained, "one that is trained"),
        ("--eval-data", options.eval_data, trained, "one that is trained"),
        ("--set", options.changes, trained, "one that is trained"),
        ("--replace", options.replace, [name for name in trained if is_ablation(name)], "an ablation"),
        ("--merge-base", options.merge_base, [name for name in options.baselines if name == "merge"], "merge"),
    ):
        if given and not users:
            asked = ", ".join(options.baselines) or "no --baselines"
            raise InputError(f"{flag}: only for {kind}, but got {asked}")
    _check(list(options.learning_rates), trained, "--learning-rates")
    if options.selector is not None and "composed_selected" not in (options.systems or ()):
        raise InputError("--selector: only for --systems composed_selected")


def read_tasks(options: argparse.Namespace) -> list[Task]:
    """Return the tasks of the command line.

    Args:
        options: What `add_parser` asked for.

    Returns:
        Those that are asked for, with their limits.

    Raises:
        InputError: No task is left, or an option does not belong to what is evaluated.
    """
    from calm_graph.evaluate.tasks.files import load_tasks

    is_own = options.tasks.endswith(".jsonl")
    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    if not is_own and (odd := [name for name in given if name != "metrics"]):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in odd)
        raise InputError(f"{flags}: only for a .jsonl; {options.tasks} says itself what is asked")
    if is_own and options.shots is not None:
        given["num_shots"] = options.shots
    found = load_tasks(options.tasks, fields=given if is_own else None)
    tasks = [
        task
        for task in found
        if (options.languages is None or task.language in options.languages)
        and (options.only is None or task.name in options.only)
    ]
    _check(options.languages, [task.language for task in found], "--languages")
    _check(options.only, [task.name for task in found], "--only")
    if not tasks:
        raise InputError("--languages, --only: there is no task of both; see calm-graph evaluate --list")
    return [_changed(task, options) for task in tasks]


def _changed(task: Task, options: argparse.Namespace) -> Task:
    changes: dict[str, Any] = {}
    if options.limit is not None:
        changes["limit"] = options.limit
    if options.shots is not None and (task.shots_from is not None or options.shots == 0):
        changes["num_shots"] = options.shots
    if options.metrics is not None:
        metrics = tuple(name for name in task.metrics if name in options.metrics)
        if not metrics:
            raise InputError(f"--metrics: task {task.label} has {', '.join(task.metrics)}")
        changes["metrics"] = metrics
    # Checked again: a limit of 0 is no limit.
    return type(task).parse({**task.model_dump(), **changes}, where="command line")


def _check(wanted: Sequence[str] | None, there: Sequence[str], option: str) -> None:
    known = list(dict.fromkeys(there))
    if odd := [name for name in wanted or () if name not in known]:
        raise InputError(f"{option}: got {odd[0]!r}, but there is {', '.join(filter(None, known)) or 'none'}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in _names(text)]
    if odd := [name for name, sign, value in pairs if not (name and sign and value)]:
        raise argparse.ArgumentTypeError(f"got {odd[0]!r}, but NAME=VALUE is needed")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _rates(text: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in _pairs(text).items()}
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _command(options: argparse.Namespace) -> str:
    import shlex

    return shlex.join(["calm-graph", *sys.argv[1:]]) if sys.argv[1:2] == ["evaluate"] else f"evaluate {options.tasks}"


def _listing() -> str:
    from calm_graph.evaluate.baselines.names import BASELINES
    from calm_graph.evaluate.measures.metrics import METRICS
    from calm_graph.evaluate.select import SYSTEMS
    from calm_graph.evaluate.suites import SUITES, suite_tasks

    lines = ["suites"]
    for name, summary in SUITES.items():
        lines.append(f"  {name}: {summary}")
        names: dict[str, list[str]] = {}
        for task in suite_tasks(name):
            names.setdefault(task.name, []).append(task.language)
        for task_name, languages in names.items():
            lines.append(f"    {task_name}  {' '.join(filter(None, languages))}".rstrip())
    lines.append("\nmetrics")
    lines += [f"  {name}: {metric.summary}" for name, metric in METRICS.items()]
    lines.append("\nsystems")
    lines += [f"  {name}: {kind.summary}{' (default)' if kind.default else ''}" for name, kind in SYSTEMS.items()]
    lines.append("\nbaselines")
    lines += [f"  {name}: {summary}" for name, summary in BASELINES.items()]
    return "\n".join(lines)
