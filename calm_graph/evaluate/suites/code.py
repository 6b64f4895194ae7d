"""Code: HumanEval, MBPP, and descriptions of functions in several languages (paper, Table 4)."""

from __future__ import annotations

from calm_graph.evaluate.tasks.task import Task

_PYTHON_DEV, _RUBY_DEV = "code_to_text/codexglue-python.dev.jsonl", "code_to_text/codexglue-ruby.dev.jsonl"
_JAVA_TRAIN = "code_to_text/concode-java.train.jsonl"

# What follows a function at the top level of a file (HumanEval paper, section 2.2).
_AFTER_FUNCTION = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\nassert", "\n@", "\n```")


def tasks() -> list[Task]:
    """Return programs from descriptions, then descriptions of programs.

    Of CodeXGLUE there are no training rows: Ruby's dev rows are trained on and Python's are chosen on.
    """
    return [
        Task(
            suite="code",
            name="humaneval",
            language="python",
            data="code/humaneval.test.jsonl",
            prompt="{prompt}",
            reference="{canonical_solution}",
            program="{prompt}{answer}\n{test}\ncheck({entry_point})\n",
            metrics=("pass@1", "bits_per_byte"),
            stop=_AFTER_FUNCTION,
            max_new_tokens=256,
        ),
        Task(
            suite="code",
            name="mbpp",
            language="python",
            data="code/mbpp.test.jsonl",
            train=("code/mbpp.train.jsonl",),
            dev=("code/mbpp.dev.jsonl",),
            # The prompt of the MBPP paper (Austin et al. 2021, section 3.2).
            prompt="You are an expert Python programmer, and here is your task: {text} "
            "Your code should pass these tests:\n\n{test_list}\n[BEGIN]\n",
            reference="{code}\n[DONE]",
            program="{test_setup_code}\n{answer}\n{test_list}\n",
            metrics=("pass@1", "bits_per_byte"),
            num_shots=3,
            shots_from="code/mbpp.prompt.jsonl",
            stop=("[DONE]",),
            max_new_tokens=256,
        ),
        _described("codexglue-python", "python", dev=(_PYTHON_DEV,), shots_from=_PYTHON_DEV),
        _described("codexglue-ruby", "ruby", train=(_RUBY_DEV,), shots_from=_RUBY_DEV),
        _described("concode-java", "java", train=(_JAVA_TRAIN,), shots_from=_JAVA_TRAIN),
        _described("humanevalx-go", "go", shots_from=_PYTHON_DEV, task="code_to_text_humanevalx"),
        _described("humanevalx-java", "java", shots_from=_JAVA_TRAIN, task="code_to_text_humanevalx"),
        _described("humanevalx-js", "js", shots_from=_PYTHON_DEV, task="code_to_text_humanevalx"),
    ]


def _described(
    name: str,
    language: str,
    *,
    shots_from: str,
    train: tuple[str, ...] = (),
    dev: tuple[str, ...] = (),
    task: str = "code_to_text",
) -> Task:
    return Task(
        suite="code",
        name=task,
        language=language,
        data=f"code_to_text/{name}.test.jsonl",
        train=train,
        dev=dev,
        prompt="Code in {lang}:\n{code}\nWhat it does:",
        reference=" {text}",
        metrics=("chrf", "bleu", "bits_per_byte"),
        num_shots=3,
        shots_from=shots_from,
        stop=("\n",),
        max_new_tokens=96,
    )
