"""The reference shows classes as `help` does: with what base classes document."""

import inspect
from textwrap import dedent
from typing import Any

import griffe

import untied_rnn
import untied_rnn.sharing
from untied_rnn import _documentation as documentation

# How sections are written for the parser; all others become text under their title.
KNOWN = {
    "Args": "Args: Arguments:",
    "Attributes": "Attributes:",
    "Call arguments": "Other args: Call arguments:",
    "Returns": "Returns:",
    "Raises": "Raises:",
}


class Completed(griffe.Extension):
    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        if func.docstring:
            _with_titles(func.docstring)
        for parameter in func.parameters:
            if parameter.kind is griffe.ParameterKind.var_keyword:
                parameter.default = None  # it would be shown as `{}`

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for name in untied_rnn.__all__:
            cls = getattr(untied_rnn, name)
            shown = pkg[cls.__module__.removeprefix(f"{pkg.path}.")][name]
            _complete(shown, cls)
            _with_titles(shown.docstring)
        # These two are not in `untied_rnn` itself.
        for name in ("callbacks.IntactBackup", "tuning.UntiedRNNHyperModel"):
            _with_titles(pkg[name].docstring)
        for name in untied_rnn.sharing.__all__:
            if pkg["sharing"][name].docstring:
                _with_titles(pkg["sharing"][name].docstring)


def _complete(shown: griffe.Class, cls: type) -> None:
    shown.docstring.value = inspect.getdoc(cls)
    bases = [base for base in shown.mro() if "__init__" in base.members]
    known = {
        p.name: p
        for c in [*reversed(bases), shown]
        for p in c.members["__init__"].parameters
    }
    completed = griffe.Parameters(known["self"])
    for parameter in inspect.signature(cls).parameters.values():
        source = known[parameter.name]
        kind = getattr(griffe.ParameterKind, parameter.kind.name.lower())
        # What the package calls a KerasObject is what Keras takes there.
        annotation = str(source.annotation).replace(
            "KerasObject", "str | dict | Callable"
        )
        completed.add(
            griffe.Parameter(
                source.name, annotation=annotation, kind=kind, default=source.default
            )
        )
    shown.members["__init__"].parameters = completed


def _with_titles(docstring: griffe.Docstring) -> None:
    start, sections = documentation.split_sections(docstring.value)
    text = [start]
    for title, section in sections.items():
        if title in KNOWN:
            # Two classes in one entry would be shown as a tuple.
            entries = section.replace(
                "TypeError, ValueError:", "TypeError | ValueError:"
            )
            text.append(f"{KNOWN[title]}\n{entries}")
        else:
            text.append(
                f'<span class="doc-section-title">{title}:</span>\n\n{dedent(section)}'
            )
    docstring.value = "\n".join(text)
