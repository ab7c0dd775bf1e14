"""Signatures and docstrings that show what a class takes over from its base classes, written once.

A layer states its own arguments and hands the rest on as `**kwargs`. So that `help`, editors and the
reference still show all of them, a class gets the arguments and the sections of its base class added.
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
    """Adds to the signature and the docstring of `cls` what it has from `base`."""
    init = vars(cls).get("__init__")
    if init is not None:
        own = list(inspect.signature(init).parameters.values())[1:]
        if not own or own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            return  # it takes nothing over
        names = [p.name for p in own]
        inherited = (p for p in inspect.signature(base).parameters.values() if p.name not in names)
        more = [p.replace(kind=p.KEYWORD_ONLY) for p in inherited]
        cls.__signature__ = inspect.Signature([*own[:-1], *more, own[-1]])  # type: ignore[attr-defined]
    if cls.__doc__ and base.__doc__:  # there are none under `python -OO`
        order = [*inspect.signature(cls).parameters]
        cls.__doc__ = _merged(inspect.cleandoc(cls.__doc__), inspect.cleandoc(base.__doc__), order)


def _merged(doc: str, base: str, order: list[str]) -> str:
    (start, sections), (_, others) = split_sections(doc), split_sections(base)
    own, inherited = _entries(sections.get("Args", "")), _entries(others.get("Args", ""))
    own.pop("kwargs", None)
    entries = inherited | own
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
