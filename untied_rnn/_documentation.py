"""Docstrings that show what a class has from its base classes, written once.

A layer's docstring explains what is special to it. `help`, editors and the reference show the rest as well,
for the class gets the arguments and the sections of its base class added.
"""

import inspect
import re
from collections.abc import Iterable

_ORDER = [
    "Args",
    "Call arguments",
    "Input shape",
    "Output shape",
    "Variables",
    "Masking",
    "Raises",
    "Example",
]


def complete(cls: type, base: type) -> None:
    """Adds to the docstring of `cls` the arguments and sections that it has from `base`."""
    if cls.__doc__ and base.__doc__:  # there are none under `python -OO`
        order = [*inspect.signature(cls).parameters]
        cls.__doc__ = _merged(inspect.cleandoc(cls.__doc__), inspect.cleandoc(base.__doc__), order)


def _merged(doc: str, base: str, order: list[str]) -> str:
    (start, sections), (_, others) = split_sections(doc), split_sections(base)
    entries = _entries(others.get("Args", "")) | _entries(sections.get("Args", ""))
    arguments = "".join(entries[name] for name in _sorted(entries, order))
    sections = {**others, **sections, "Args": arguments}
    titles = _sorted(sections, _ORDER)
    return start.rstrip() + "\n\n" + "\n".join(f"{title}:\n{sections[title].rstrip()}\n" for title in titles)


def _sorted(names: Iterable[str], order: list[str]) -> list[str]:
    """Those that are not in `order` come last."""
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def split_sections(doc: str) -> tuple[str, dict[str, str]]:
    """What comes before the first section, and the sections by title."""
    start, *parts = re.split(r"^([A-Z][a-z]+(?: [a-z]+)*):\n", doc, flags=re.MULTILINE)
    return start, dict(zip(parts[::2], parts[1::2], strict=True))


def _entries(section: str) -> dict[str, str]:
    """The entries of a section of arguments by name."""
    _, *parts = re.split(r"^(?=    \**\w+: )", section.rstrip() + "\n", flags=re.MULTILINE)
    return {part.split(":")[0].strip(" *"): part for part in parts}
