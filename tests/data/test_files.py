"""Rows from files: which files a location means, what is in them, and what is wrong with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from calm_graph.data.files import find_files
from calm_graph.data.sources import open_rows
from calm_graph.errors import InputError
from tests.data.conftest import CHAT, CHATML, GOOD, load

ROWS = [{"prompt": f"price {i}", "completion": f" {i}"} for i in range(5)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    parquet.write_table(pa.table(columns), path, **options)
    return path


def prompts(location: object, **options: Any) -> list[str]:
    return [row["prompt"] for _, row in open_rows(location, **options).rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files in each of two formats and depths, and what else lies about."""
    folder = tmp_path / "data"
    write_lines(folder / "a.jsonl", ROWS[:1])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress((json.dumps(ROWS[1]) + "\n").encode()))
    write_lines(folder / "deep" / "c.ndjson", ROWS[2:3])
    write_table(folder / "deep" / "d.parquet", {"prompt": ["price 3", "price 4"], "completion": [" 3", " 4"]})
    (folder / "README.md").write_text("not rows")
    write_lines(folder / ".cache" / "old.jsonl", [{"prompt": "old", "completion": "x"}])
    write_lines(folder / "_tmp.jsonl", [{"prompt": "tmp", "completion": "x"}])
    return folder


def test_a_folder_a_glob_and_a_uri_name_the_same_rows(
    folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [row["prompt"] for row in ROWS]
    assert prompts(folder) == prompts(str(folder)) == prompts(f"file://{folder}") == expected
    assert prompts(f"{folder}/[ab].jsonl*")[:2] == expected[:2]
    assert prompts(f"{folder}/**/[cd].*") == prompts(f"file://{folder}/deep/*") == expected[2:]
    assert prompts(f"file://{folder}/deep/d.parquet") == expected[3:]
    assert load(folder, tokenizer).fingerprint() == load(ROWS, tokenizer).fingerprint()
    monkeypatch.chdir(folder.parent)
    assert prompts("data/deep") == prompts(Path("data/deep/*")) == expected[2:]
    dataset = load("data", tokenizer)
    assert [dataset.where(i) for i in range(5)] == [
        "data/a.jsonl:1",
        "data/b.jsonl.gz:1",
        "data/deep/c.ndjson:1",
        "data/deep/d.parquet[0]",
        "data/deep/d.parquet[1]",
    ]
    assert load(f"file://{folder}/a.jsonl", tokenizer).where(0) == f"file://{folder}/a.jsonl:1"


def test_several_sources_are_read_one_after_the_other(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = {"b.jsonl": ["price", "now"], "a.jsonl": ["apples"]}
    for name, rows in texts.items():
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    paths = [str(tmp_path / "b.jsonl"), tmp_path / "a.jsonl"]
    dataset = load(paths, tokenizer)
    assert [dataset.where(index) for index in range(3)] == [f"{paths[0]}:1", f"{paths[0]}:2", f"{paths[1]}:1"]
    assert load(paths[:1], tokenizer).fingerprint() == load(paths[0], tokenizer).fingerprint()
    with pytest.raises(InputError, match="nothing"):
        load([*paths, tmp_path / "nothing.jsonl"], tokenizer)
    with pytest.raises(InputError, match=r"data\[1\]: got 'x'"):
        load([{"text": "price"}, "x"], tokenizer)


def test_a_name_with_the_signs_of_a_glob_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "part[1].jsonl", ROWS[:1])
    assert prompts(path) == ["price 0"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "none.jsonl",
            r"none.jsonl: no such file, folder of .jsonl or .parquet files, or glob; each row of a file is {",
        ),
        ("*.jsonl", r"\*.jsonl: no such file"),
        ("empty", "empty: no such file, folder"),
        ("rows.csv", r"rows.csv: got the ending .csv, but allowed are .jsonl, .jsonl.gz, .*, .parquet"),
        ("*.csv", r"rows.csv: got the ending .csv"),
        ("file:///none.jsonl", "file:///none.jsonl: no such file"),
        ("ftp://host/rows.jsonl", r"ftp://host/rows.jsonl: cannot be reached \(Unrecognized filesystem type"),
    ],
)
def test_a_location_without_rows_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("prompt,completion\n")
    with pytest.raises(InputError, match=f"^{message}"):
        find_files(location)


def test_parquet_is_read_by_pieces_and_only_the_columns_that_are_needed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = CHATML
    count = 2500
    path = write_table(
        tmp_path / "t.parquet",
        {
            "text": pa.array(["price"] * count + [None]).dictionary_encode(),
            "messages": [None] * count + [CHAT["messages"]],
            "vector": [[0.5] * 8] * (count + 1),
        },
        row_group_size=300,
    )
    opened = open_rows(path)
    assert opened.num_rows == count + 1
    first = next(opened.rows)
    assert (str(first[0]), first[1]) == (f"{path}[0]", {"text": "price", "messages": None})
    dataset = load(path, tokenizer)
    assert (len(dataset), dataset.where(count)) == (count + 1, f"{path}[{count}]")
    assert dataset[count].prompt_text == "price?"


def test_columns_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    table = write_table(tmp_path / "t.parquet", {"question": ["price"], "answer": [" 3"], "prompt": ["another"]})
    lines = write_lines(tmp_path / "t.jsonl", [{"question": "price", "answer": " 3", "prompt": "another"}])
    columns = {"prompt": "question", "completion": "answer"}
    for path in (table, lines, [json.loads(lines.read_text())]):
        assert load(path, tokenizer, columns=columns).fingerprint() == load([GOOD], tokenizer).fingerprint()
        with pytest.raises(InputError, match=r"no column 'anser' among .*; did you mean 'answer'\?"):
            load(path, tokenizer, columns=columns | {"completion": "anser"})
    for wrong, message in (
        ({"promt": "question"}, r"columns: got the key 'promt', but allowed are .*; did you mean 'prompt'\?"),
        ({"prompt": "question"}, "columns: got the keys prompt, but a row is {"),
        ({}, r"columns: got the keys \(none\), but a row is {"),
    ):
        with pytest.raises(InputError, match=message):
            load(table, tokenizer, columns=wrong)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["a"], "completion": [3]}, "the column 'completion' holds int64, but text is needed"),
        ({"text": [b"a"]}, "the column 'text' holds binary, but text is needed"),
        ({"messages": ["hi"]}, "the column 'messages' holds string, but a list of {role, content} is needed"),
        ({"messages": [[{"from": "a"}]]}, r"the column 'messages' holds list<.*>, but a list of"),
        (
            {"question": ["a"], "answer": ["b"]},
            r"got the columns question, answer, but a row is .*; say where they are: columns=",
        ),
        ({"prompt": ["a"], "completions": ["b"]}, "got the columns .*; did you mean 'completion' by 'completions'"),
        (
            {"text": ["a"], "augmenter_input": ["b"]},
            "got the columns .*; did you mean 'augmenter_inputs' by 'augmenter_input'",
        ),
    ],
)
def test_a_table_of_other_columns_is_one_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, columns: dict[str, Any], message: str
) -> None:
    path = write_table(tmp_path / "t.parquet", columns)
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        load(path, tokenizer)


def test_a_row_of_a_table_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_table(tmp_path / "t.parquet", {"prompt": ["a", "b"], "completion": ["x", None]})
    with pytest.raises(InputError, match=r"t.parquet\[1\]: got the keys prompt, but no completion"):
        load(path, tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"", r"t.parquet: cannot be read as Parquet \("),
        ("t.parquet", b'{"text": "a"}\n', r"t.parquet: cannot be read as Parquet \("),
        ("t.jsonl", b"", "t.jsonl: no rows"),
        ("t.jsonl", b"\xef\xbb\xbf{\n", "t.jsonl:1: not JSON"),
        ("t.jsonl", b'{"text": "\xff"}\n', "t.jsonl:1: not UTF-8 text"),
        ("t.jsonl.gz", b'{"text": "a"}\n', r"t.jsonl.gz: cannot be read as JSON Lines \("),
        ("t.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-9], r"t.jsonl.gz: cannot be read as JSON Lines \("),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / name, tokenizer)


def test_a_byte_order_mark_and_unusual_line_ends_are_no_matter(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "price"}\r\n\r\n' + '{"text": "a\u2028b"}'.encode())
    dataset = load(path, tokenizer)
    assert [dataset.where(i) for i in range(len(dataset))] == [f"{path}:1", f"{path}:3"]


def test_what_is_no_source_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    for data in (3, {"prompt": "a", "completion": "b"}):
        with pytest.raises(InputError, match=rf"data: got a {type(data).__name__}, but a path, a URI, hf:NAME, a list"):
            load(data, tokenizer)
