"""The folder of a run in a bucket: worked on here and copied there, so that any node can go on with it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, copy_files

from calm_graph.errors import TrainingError
from calm_graph.train.folder import RunFolder
from calm_graph.train.state import FACTS, list_states

_SHARED = "tensorboard"


@dataclass(frozen=True, slots=True)
class BucketFolder(RunFolder):
    """A run's files here, and in a bucket that pyarrow knows: `s3://`, `gs://`, `abfs://`, `hdfs://`, `file://`.

    A state counts as there once its description is, which is copied last.

    Args:
        path: Where this process works.
        uri: The `out` of the run.
    """

    uri: str = ""

    @classmethod
    def of(cls, uri: str) -> BucketFolder:
        """Make a folder to work in, and fetch what is in the bucket.

        Raises:
            TrainingError: The bucket cannot be read.
        """
        folder = cls(Path(tempfile.mkdtemp(prefix="calm-graph-run-")), uri)
        try:
            folder.fetch()
        except (OSError, ValueError) as error:
            raise TrainingError(f"{uri}: cannot be read ({error}); check the address and your rights") from None
        return folder

    @property
    def name(self) -> str:
        """The address in the bucket."""
        return self.uri

    @property
    def shared(self) -> str:
        """The address in the bucket."""
        return self.uri

    def remove(self, name: str) -> None:
        """Remove a directory of the run from the bucket, if it is there."""
        files, root = FileSystem.from_uri(self.uri)
        if files.get_file_info(f"{root}/{name}").type == FileType.Directory:
            files.delete_dir(f"{root}/{name}")

    def absolute(self) -> BucketFolder:
        """The address is the same everywhere."""
        return self

    def on_this_node(self) -> BucketFolder:
        """Work in another folder, of the node this is called on."""
        return replace(self, path=Path(tempfile.mkdtemp(prefix="calm-graph-run-")))

    def fetch(self) -> None:
        """Copy the run's files and its newest state from the bucket."""
        files, root = FileSystem.from_uri(self.uri)
        found = _inside(files, root)
        states = self._whole_states(files, root)
        for info in found:
            if info.type == FileType.File and not info.base_name.startswith("."):
                copy_files(info.path, str(self.path / info.base_name), source_filesystem=files)
        if states:
            (self.states / states[-1]).mkdir(parents=True, exist_ok=True)
            source = f"{root}/{self.states.name}/{states[-1]}"
            copy_files(source, str(self.states / states[-1]), source_filesystem=files)

    def publish(self) -> None:
        """Copy what is new to the bucket, then remove what is gone here.

        Raises:
            TrainingError: The bucket cannot be written.
        """
        try:
            self._publish()
        except OSError as error:
            raise TrainingError(f"{self.uri}: cannot be written ({error})") from None

    def _publish(self) -> None:
        files, root = FileSystem.from_uri(self.uri)
        files.create_dir(root, recursive=True)
        here = {state.name: state for state in list_states(self.states)}
        for name in here.keys() - set(self._whole_states(files, root)):
            target = f"{root}/{self.states.name}/{name}"
            files.create_dir(target, recursive=True)
            for file in sorted(here[name].iterdir(), key=lambda file: file.name == FACTS):
                copy_files(str(file), f"{target}/{file.name}", destination_filesystem=files)
        for file in self.path.iterdir():
            if file.is_file() and not file.name.startswith("."):
                copy_files(str(file), f"{root}/{file.name}", destination_filesystem=files)
        if (self.path / _SHARED).is_dir():
            files.create_dir(f"{root}/{_SHARED}")
            copy_files(str(self.path / _SHARED), f"{root}/{_SHARED}", destination_filesystem=files)
        for info in _inside(files, f"{root}/{self.states.name}"):
            if info.base_name not in here:
                files.delete_dir(info.path)

    def _whole_states(self, files: FileSystem, root: str) -> list[str]:
        folder = f"{root}/{self.states.name}"
        names = [info.base_name for info in _inside(files, folder) if info.type == FileType.Directory]
        facts = files.get_file_info([f"{folder}/{name}/{FACTS}" for name in names])
        whole = [PurePosixPath(info.path).parent.name for info in facts if info.type == FileType.File]
        return sorted(whole, key=lambda name: int(name.removeprefix("step-")))


def _inside(files: FileSystem, folder: str) -> list[FileInfo]:
    return list(files.get_file_info(FileSelector(folder, allow_not_found=True)))
