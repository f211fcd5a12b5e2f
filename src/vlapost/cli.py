"""What every command shares: its words, its error sentences, its progress bar.

Exit codes: 0 done, 2 something the user can mend (one sentence on stderr), 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from threading import Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from vlapost.config import ROOT, UserError

console = Console()
NO_RIGHT = "You may not write {} (or read it); change its owner or its mode, or choose another place."
MENDABLE = {
    errno.ENOSPC: "The disk holding {} is full; free some space and give the same command again.",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), NO_RIGHT),
}


def main(run: Callable[[list[str]], None]) -> None:
    """Run a command with the words after its name, then exit; `--help` prints the docstring of its file."""
    words = sys.argv[1:]
    if "-h" in words or "--help" in words:
        print((sys.modules[run.__module__].__doc__ or "").strip())
        sys.exit(0)
    sys.exit(guard(run, words))


def guard(run: Callable[[list[str]], None], words: list[str]) -> int:
    """Run a command and return its exit code; what the user can mend becomes one sentence on stderr."""
    try:
        run(words)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; the same command continues.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        print(f"Error: {MENDABLE[error.errno].format(error.filename or ROOT)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        print(
            f"Error: {str(error).splitlines()[0]} `make memory` says what a recipe needs; it is less with a smaller "
            "optim.batch_size or env.num_envs, policy.recompute=blocks, policy.quantize=nf4 or evaluation.workers=1.",
            file=sys.stderr,
        )
        return 2
    return 0


def parse(argv: Sequence[str], default: str) -> tuple[str, list[str]]:
    """Split a command's words into the configuration's name and its overrides.

    The one word without "=" is the name of a file in conf/; without it the name is `default`.

    Raises:
        UserError: more than one such word.
    """
    names = [word for word in argv if "=" not in word]
    if len(names) > 1:
        raise UserError(
            f"'{names[1]}' is not of the form key=value, and the configuration is already '{names[0]}'; "
            "give one configuration and then key=value words."
        )
    return (names[0] if names else default), [word for word in argv if "=" in word]


def last(words: list[str], prefix: str) -> str:
    """The value of the last word with that prefix; empty without one."""
    return ([""] + [word.removeprefix(prefix) for word in words if word.startswith(prefix)])[-1]


def end_with_parent() -> None:
    """Leave when the process that started this one is gone, even if it was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


class _RateColumn(ProgressColumn):
    """Items per second, or seconds per item where that is the larger number."""

    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The rate of one bar."""
        rate = task.finished_speed or task.speed
        if not rate:
            return Text(f"-- {self.unit}/s", style="cyan")
        text = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}"
        return Text(text, style="cyan")


class _NoteColumn(ProgressColumn):
    """What a narrow terminal cuts first, so that rate and time left stay."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=False))  # the table narrows such columns; the text is cut, not wrapped

    def render(self, task: Task) -> Text:
        """The note of one bar."""
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


def progress(unit: str) -> Progress:
    """A progress bar with rate and time left; tasks are made with `add_task(name, total=..., note="")`.

    `note` is a free text behind the bar, such as a running success rate: `update(task, note="success 61 %")`.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        _NoteColumn(),
        console=console,
        speed_estimate_period=120,
    )
