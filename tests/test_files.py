"""Checkpoint files on a full disk and after a kill."""

from __future__ import annotations

import errno
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlapost.policies.files import new_folder, read_tensors, restore, write_tensors

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from vlapost.policies.files import new_folder

rename, calls, at = Path.rename, [], int(sys.argv[2])

def counted(self, target):
    calls.append(target)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.rename = counted
with new_folder(Path(sys.argv[1])) as new:
    (new / "weights").write_text("new")
"""


def test_tensors_come_back(tmp_path: Path) -> None:
    write_tensors({"a": torch.arange(3)}, tmp_path / "x.safetensors")
    assert read_tensors(tmp_path / "x.safetensors")["a"].tolist() == [0, 1, 2]


def test_a_refused_write_has_its_number_and_path(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk; both reach safetensors as a failed write."""
    path = tmp_path / "x.safetensors"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_tensors({"a": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)


def test_a_full_disk_has_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence that safetensors gives when a disk is full."""
    from safetensors import SafetensorError

    from vlapost.policies import files

    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError) as caught:
        write_tensors({}, tmp_path / "x.safetensors")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "x.safetensors")


@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path, at: int) -> None:
    folder = tmp_path / "model"
    with new_folder(folder) as new:
        (new / "weights").write_text("old")
    program = [sys.executable, "-c", KILLED_AT, str(folder), str(at)]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL
    assert folder.exists() == (at == 1)
    restore(folder)
    assert (folder / "weights").read_text() == "old"
    with new_folder(folder) as new:
        assert list(new.iterdir()) == []
        (new / "weights").write_text("newer")
    assert (folder / "weights").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_block_changes_nothing(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model") as new:
        (new / "weights").write_text("old")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "model") as new:
        (new / "weights").write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
