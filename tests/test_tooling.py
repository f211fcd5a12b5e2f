"""Make targets, error sentences, the doctor's lines."""

import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text
from torch import OutOfMemoryError

from vlapost import cli, doctor, drivers
from vlapost.config import ROOT, UserError

MAKEFILE = (ROOT / "Makefile").read_text()


# ---- make


def test_every_module_the_makefile_runs_exists() -> None:
    modules = re.findall(r"-m (vlapost\.\w+)", MAKEFILE)
    assert len(modules) >= 6
    assert [module for module in modules if find_spec(module) is None] == []


def test_every_configuration_the_makefile_names_exists() -> None:
    names = re.findall(r"-m vlapost\.(?:train|recipe) (?:\$\(or \$\(CONF\),)?(\w+)", MAKEFILE)
    assert {"sft", "ppo", "grpo", "tpo"} <= set(names)
    assert [name for name in names if not (ROOT / "conf" / f"{name}.yaml").is_file()] == []


def test_help_lists_every_target() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert targets is not None
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [t for t in targets[1].split() if not re.search(rf"^  make {t} +\w", shown, re.MULTILINE)] == []


def test_a_setting_given_as_a_variable_of_make_is_refused() -> None:
    """It would be dropped, and another run than the one asked for would be made or shown."""

    def dry(*words: str, **here: str) -> subprocess.CompletedProcess[str]:
        environment = here | {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, env=environment)

    wrong = dry("train-ppo", "run=mine")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert 'settings follow ARGS: make train-ppo ARGS="run=mine"' in wrong.stderr
    unread = ("train-sft", "N=1000"), ("train-ppo", "CKPT=x"), ("memory", "CONF=grpo"), ("test", "PORT=1")
    for goal, word in (*unread, ("doctor", "ARGS=x"), ("tensorboard", "ARGS=PORT=6007")):
        wrong = dry(goal, word)
        assert wrong.returncode == 2 and f"make {goal} does not read {word.split('=')[0]}" in wrong.stderr
    assert "vlapost.curve grpo" in dry("learning-curve", "CONF=grpo").stdout
    by_chance = dry("train-ppo", CONF="grpo", ARGS="seed=9").stdout  # in the environment
    assert "vlapost.recipe ppo" in by_chance and "seed=9" not in by_chance
    assert "grpo" in dry("train-ppo", "CONF=grpo", CONF="tpo").stdout
    assert (
        "policy.adapter=mine against=theirs seed=1"
        in dry("evaluate", "CKPT=mine", "AGAINST=theirs", "ARGS=seed=1").stdout
    )


def test_a_long_note_does_not_push_rate_and_time_left_off_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(cli, "console", Console(file=shown, width=80, force_terminal=True))
    with cli.progress("demo") as bar:
        task = bar.add_task("demonstrations", total=3000, note="")
        bar.update(task, completed=1500, note="success 92%; failed: 128 dropped before the plate, 99 not grasped")
    last = Text.from_ansi(shown.getvalue()).plain.splitlines()[-1]
    assert len(last) <= 80
    for part in ("demonstrations", "1500/3000", "demo/s", "0:00:00", "left", "success"):
        assert part in last, last


def test_setup_script_has_no_syntax_error() -> None:
    subprocess.run(["bash", "-n", "scripts/setup.sh"], cwd=ROOT, check=True)


def test_port_in_use_names_the_port_and_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        child = tensorboard(str(port))
    assert child.returncode == 2
    assert f"Port {port} " in child.stderr and f"make tensorboard PORT={port + 1}" in child.stderr
    assert child.stderr.count("\n") == 1


def test_port_that_is_no_number() -> None:
    child = tensorboard("http")
    assert child.returncode == 2 and "'http'" in child.stderr


def tensorboard(port: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/tensorboard.py", port], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_tensorboard_itself_starts() -> None:
    program = [sys.executable, "-m", "tensorboard.main", "--version"]
    assert subprocess.run(program, capture_output=True, text=True).stdout.startswith("2.")


# ---- commands


def outcome(error: BaseException | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def run(words: list[str]) -> None:
        if error is not None:
            raise error

    return cli.guard(run, []), capsys.readouterr().err


def test_errors_become_one_sentence_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(None, capsys) == (0, "")
    assert outcome(UserError("Give a number."), capsys) == (2, "Error: Give a number.\n")
    assert outcome(KeyboardInterrupt(), capsys) == (130, "\nInterrupted; the same command continues.\n")
    code, text = outcome(OSError(errno.ENOSPC, "No space left on device", "runs/a.ckpt"), capsys)
    assert code == 2 and text.startswith("Error: The disk holding runs/a.ckpt is full") and text.count("\n") == 1
    code, text = outcome(OutOfMemoryError("CUDA out of memory. Tried.\nMore."), capsys)
    assert code == 2 and text.startswith("Error: CUDA out of memory. Tried. `make memory`") and text.count("\n") == 1
    code, text = outcome(PermissionError(errno.EACCES, "Permission denied", "runs/a.ckpt"), capsys)
    assert code == 2 and text.startswith("Error: You may not write runs/a.ckpt") and text.count("\n") == 1
    with pytest.raises(OSError, match="Input/output error"):
        outcome(OSError(errno.EIO, "Input/output error", "runs/a.ckpt"), capsys)


def test_a_really_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    def run(words: list[str]) -> None:
        with open("/dev/full", "w") as file:
            file.write("x")

    assert cli.guard(run, []) == 2
    assert "is full" in capsys.readouterr().err


def test_words_are_split_into_name_and_overrides() -> None:
    assert cli.parse(["a=1", "ppo", "b=x y"], "base") == ("ppo", ["a=1", "b=x y"])
    assert cli.parse([], "base") == ("base", [])
    with pytest.raises(UserError, match="'lr'"):
        cli.parse(["sft", "lr"], "base")


def test_help_prints_the_command_and_does_nothing() -> None:
    child = subprocess.run([sys.executable, "-m", "vlapost.evaluate", "--help"], capture_output=True, text=True)
    assert child.returncode == 0 and "make evaluate CKPT=" in child.stdout


def test_progress_shows_rate_and_time_left() -> None:
    with cli.console.capture() as shown, cli.progress("episode") as bar:
        task = bar.add_task("Evaluate", total=4, note="success 50%")
        bar.update(task, advance=4)
    assert "4/4" in shown.get() and "episode" in shown.get() and "left" in shown.get() and "50%" in shown.get()


# ---- doctor


def test_doctor_lines() -> None:
    assert doctor.line("vulkan", True, "GPU: X") == "ok    vulkan       GPU: X"
    assert doctor.line("vulkan", False, "none; run make setup.").startswith("FAIL  vulkan  ")


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print('noise'); print('Mesa 25')", (True, "Mesa 25")),
        ("import sys; print('Error: no driver; run make setup.', file=sys.stderr); sys.exit(2)",
         (False, "no driver; run make setup.")),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", (False, "crashed with SIGSEGV; mend it")),
        ("import no_such_package", (False, "ModuleNotFoundError: No module named 'no_such_package'; mend it")),
    ],
)  # fmt: skip
def test_doctor_reports_whatever_a_check_does(program: str, expected: tuple[bool, str]) -> None:
    assert doctor.judge([sys.executable, "-c", program], "mend it") == expected


def test_the_packages_here_are_those_of_setup_cfg() -> None:
    healthy, text = doctor.judge([sys.executable, "-m", "vlapost.doctor", "packages"], "mend it")
    assert healthy, text


def test_a_machine_needs_memory_and_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(memory: float, disk: float) -> str:
        sizes = SimpleNamespace(available=memory * 2**30, total=8 * 2**30), SimpleNamespace(free=disk * 2**30)
        monkeypatch.setattr("psutil.virtual_memory", lambda: sizes[0])
        monkeypatch.setattr("shutil.disk_usage", lambda path: sizes[1])
        return doctor.check_machine()

    assert machine(4, 2).endswith(" cores, 8 GiB memory, 2 GiB free on disk")
    with pytest.raises(UserError, match=r"only 3\.9 GiB of memory are free and 4 are needed"):
        machine(3.9, 2)
    with pytest.raises(UserError, match=r"only 1\.9 GiB are free on the disk of .* and 2 are needed"):
        machine(4, 1.9)


# ---- Vulkan driver


@pytest.mark.parametrize(
    ("device", "description", "library", "expected"),
    [
        (True, True, False, "gpu"),
        (True, False, True, "gpu"),
        (True, False, False, "cpu"),  # a container with compute libraries alone
        (False, True, True, "cpu"),
    ],
)
def test_a_gpu_draws_only_with_device_and_driver(monkeypatch, tmp_path, device, description, library, expected) -> None:
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.setenv(name, "")
    (tmp_path / "lvp_icd.x86_64.json").touch()
    if description:
        (tmp_path / "nvidia_icd.json").touch()
    if device:
        (tmp_path / "nvidia3").touch()
    monkeypatch.setattr(drivers, "DEVICES", tmp_path)
    monkeypatch.setattr(drivers, "ICD_FOLDERS", (tmp_path,))
    monkeypatch.setattr(drivers, "find_library", lambda name: "libGLX_nvidia.so.0" if library else None)
    assert drivers.choose_driver() == expected
    software = str(tmp_path / "lvp_icd.x86_64.json")
    assert os.environ["VK_DRIVER_FILES"] == ("" if expected == "gpu" else software)


def test_a_driver_the_user_names_is_kept(monkeypatch) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", "/somewhere/lvp_icd.json")
    assert drivers.choose_driver() == "cpu"
    monkeypatch.setenv("VK_DRIVER_FILES", "/somewhere/radeon_icd.json")
    assert drivers.choose_driver() == "gpu"
