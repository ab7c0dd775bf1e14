"""What the examples share: arguments, errors in one line, files that are never half written."""

import argparse
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, received {text}")
    return int(text)


def fail(what: str, error: Exception) -> NoReturn:
    sys.exit(f"error: {what}: {' '.join(str(error).split())}")


def verbosity() -> int:
    """Of `fit`: a progress bar in a terminal, and one line an epoch in a file or a pipe."""
    return 1 if sys.stdout.isatty() else 2


def start(train: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Ends with an error of one line if a file cannot be read or written."""
    try:
        train(args)
    except OSError as error:
        fail(f"cannot use --out {args.out}", error)


def end_on_interrupt(message: str) -> None:
    """Makes Ctrl-C end the process at once with `message`. Files written by `replace` stay whole.

    A `KeyboardInterrupt` is lost if it is raised within a destructor, and TensorFlow has thousands of them.
    """

    def end(*_: Any) -> NoReturn:
        os.write(2, f"{message}\n".encode())  # `print` must not be called while it runs
        os._exit(128 + signal.SIGINT)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as behind `nohup`
        signal.signal(signal.SIGINT, end)


def replace(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Replaces `path` by what `write` writes, once it is whole.

    So whatever happens at whatever moment, `path` is either the old file or the new one.
    """
    unfinished = path.with_name(f"unfinished_{path.name}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
