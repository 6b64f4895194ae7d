"""What systems have answered, in files: each answer is kept as it comes, and asked for once only."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from calm_graph.evaluate.systems.base import Decoding

Kind = Literal["answers", "nats"]


class Predictions:
    """One file of answers, or of scores, of one system.

    A row is found again by what was asked, word for word; so results of a smaller test set are used by a larger one,
    and a changed prompt is asked anew.

    Args:
        folder: Of all files.
        names: What the file is called after, for people: task and system.
        identity: Of the system.
        kind: Whether answers or scores are kept.
        decoding: How answers are made; None for scores.
    """

    def __init__(
        self, folder: Path, *, names: Sequence[str], identity: str, kind: Kind, decoding: Decoding | None = None
    ) -> None:
        settings = {"identity": identity, "kind": kind, "decoding": None if decoding is None else asdict(decoding)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        name = ".".join(re.sub(r"[^\w@+-]+", "_", part) for part in (*names, kind) if part)
        self.path = folder / f"{name}.{digest}.jsonl"
        self._found: dict[str, Any] = {}
        self._read()

    def __contains__(self, asked: tuple[str, ...]) -> bool:
        return _key(asked) in self._found

    def __getitem__(self, asked: Sequence[str]) -> Any:
        return self._found[_key(asked)]

    def add(self, rows: Sequence[tuple[Sequence[str], Any]], *, shown: Callable[[Any], Mapping[str, Any]]) -> None:
        """Keep what was answered.

        Args:
            rows: What was asked (prompt, or prompt and completion), and what came of it.
            shown: The rest of a line, for people who read the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for asked, value in rows:
                self._found[_key(asked)] = value
                line = {"key": _key(asked), "value": value, "prompt": asked[0], **shown(asked)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # a run was killed while it wrote
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for line in whole.decode().split("\n")[:-1]:  # `splitlines` would also split at characters inside of texts
            row = json.loads(line)
            self._found[row["key"]] = row["value"]


def _key(asked: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(asked).encode()).hexdigest()[:32]
