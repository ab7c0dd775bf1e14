"""What the examples share: arguments, errors in one line, files that are never half written."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, received {text}")
    return int(text)


def fail(what: str, error: Exception) -> NoReturn:
    sys.exit(f"error: {what}: {' '.join(str(error).split())}")


def replace(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Has `write` write a file that takes the place of `path` when it is whole.

    So whatever happens at whatever moment, `path` is either the old file or the new one.
    """
    unfinished = path.with_name(f"unfinished_{path.name}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
