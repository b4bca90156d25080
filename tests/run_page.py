"""Run the blocks of pages in one process with one loaded model: a page a line of JSON in, its exit status a line out.

`python` blocks run here. `sh` blocks go to bash, and what they call `stepaudio` (`run_command.py`) hands its words,
folder, environment and standard streams to this process, which runs the command as a process of its own would.
"""

import json
import os
import select
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepaudio.checkpoints.find import checkpoint_folder
from stepaudio.cli.main import main
from stepaudio.model import StepAudio2

BUNDLED = Path(__file__).resolve().parents[1] / "data" / "nano" / "model.safetensors"
STREAMS = (0, 1, 2)


def share_the_bundled_model() -> None:
    """Let every load of the bundled model, or of a page's copy of its folder, give one object: nothing changes it."""
    load, kept = StepAudio2.load, {}

    def shared(path=None, **options):
        if (checkpoint_folder(path) / BUNDLED.name).resolve() != BUNDLED:
            return load(path, **options)
        wanted = repr(sorted(options.items()))
        if wanted not in kept:
            kept[wanted] = load(path, **options)
        return kept[wanted]

    StepAudio2.load = shared


@contextmanager
def streams(files: list[int]) -> Iterator[None]:
    """Standard input, output and error are these files, which are closed at the end."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept, before = [os.dup(n) for n in STREAMS], (sys.stdin, sys.stdout, sys.stderr)
    for file, n in zip(files, STREAMS, strict=True):
        os.dup2(file, n)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r", closefd=False) for n in STREAMS)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.close()  # which writes what is left, and keeps the file open
        sys.stdin, sys.stdout, sys.stderr = before
        for file, n in zip(kept, STREAMS, strict=True):
            os.dup2(file, n)
            os.close(file)


@contextmanager
def folder_and_environment(folder: str, environment: dict[str, str]) -> Iterator[None]:
    """What a process that is started there would find."""
    before = os.getcwd(), dict(os.environ)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.chdir(before[0])
        os.environ.clear()
        os.environ.update(before[1])


def run_command(words: list[str]) -> int:
    """One command `stepaudio`; its exit status."""
    try:
        return main(words)
    except SystemExit as left:
        return left.code or 0
    except Exception:
        traceback.print_exc()
        return 1


def serve(listener: socket.socket) -> None:
    """Run the command that asks, one at a time."""
    connection, _ = listener.accept()
    with connection:
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, len(STREAMS))
        asked = json.loads(message)
        with folder_and_environment(asked["folder"], asked["environment"]), streams(files):
            status = run_command(asked["words"])
        connection.sendall(str(status).encode())


def run_script(text: str, listener: socket.socket) -> int:
    """Give a block to bash, and serve it until it ends; its exit status."""
    process = subprocess.Popen(["bash", "-c", f"set -euo pipefail\n{text}\n"], stdin=subprocess.DEVNULL)
    while process.poll() is None:
        if select.select([listener], [], [], 0.01)[0]:
            serve(listener)
    return process.returncode


def run_page(blocks: list[dict], listener: socket.socket) -> int:
    """Run the blocks in order; `python` blocks share one namespace, and their lines are numbered as in the page."""
    names: dict = {"__name__": "__main__"}
    for block in blocks:
        where = f"{block['page']}:{block['line']}"
        print(f"--- {where} ({block['language']})", flush=True)
        if block["language"] == "sh":
            if status := run_script(block["text"], listener):
                print(f"{where}: exit status {status} of\n{block['text']}")
                return 1
            continue
        try:
            exec(compile("\n" * (block["line"] - 1) + block["text"], block["page"], "exec"), names)
        except (Exception, SystemExit):
            traceback.print_exc(file=sys.stdout)
            return 1
    return 0


def run(address: str) -> None:
    """Read pages until there are no more."""
    share_the_bundled_model()
    asks, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        for line in asks:
            page = json.loads(line)
            environment = os.environ | page["environment"]
            output = os.open(page["output"], os.O_WRONLY | os.O_CREAT)
            files = [os.open(os.devnull, os.O_RDONLY), output, os.dup(output)]
            with folder_and_environment(page["folder"], environment), streams(files), warnings.catch_warnings():
                status = run_page(page["blocks"], listener)
                if "matplotlib.pyplot" in sys.modules:
                    sys.modules["matplotlib.pyplot"].close("all")
            print(status, file=answers, flush=True)


if __name__ == "__main__":
    run(sys.argv[1])
