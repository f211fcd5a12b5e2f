"""Open TensorBoard on lightning_logs if its port is free: `make tensorboard PORT=6007`."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from vlapost import cli
from vlapost.config import ROOT, UserError


def check_port(word: str) -> int:
    """The port as a number.

    Raises:
        UserError: not a port number, or another program listens on it.
    """
    if not word.isdigit() or not 1 <= int(word) <= 65535:
        raise UserError(f"PORT is '{word}'; it must be a number from 1 to 65535, as in make tensorboard PORT=6007.")
    port = int(word)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("localhost", port))
        except OSError as error:
            other = port + 1 if port < 65535 else 6006
            raise UserError(
                f"Port {port} cannot be used ({error.strerror}); choose another: make tensorboard PORT={other}."
            ) from None
    return port


def run(words: list[str]) -> None:
    """Replace this process by TensorBoard."""
    port = check_port(words[0] if words else "6006")
    logs = ROOT / "lightning_logs"
    logs.mkdir(exist_ok=True)
    program = str(Path(sys.executable).with_name("tensorboard"))
    os.execv(program, [program, "--logdir", str(logs), "--port", str(port)])


if __name__ == "__main__":
    cli.main(run)
