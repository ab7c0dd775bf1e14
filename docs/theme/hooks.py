"""What pages take from elsewhere: the changelog, outputs of code, formulas."""

import html
import importlib.metadata
import re
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import latex2mathml.converter
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]


def on_config(config: Any) -> Any:
    config.copyright = (
        f"untied_rnn {importlib.metadata.version('untied-rnn')}, Apache-2.0"
    )
    return config


def on_files(files: Files, config: Any, **kwargs: Any) -> Files:
    """Runs the page that is a notebook, and offers the notebook for download."""
    page = files.get_file_from_path("first_model.md")
    assert page is not None
    notebook = jupytext.reads(page.content_string, fmt="md")
    notebook.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:  # what libraries log is for the terminal
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if output.get("name") != "stderr"
            ]
    body, resources = MarkdownExporter().from_notebook_node(notebook)
    page.content_string = body.replace(
        "![png](", "![Drawn by the code above](first_model/"
    )
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, f"first_model/{name}", content=picture))
    for cell in notebook.cells:  # a notebook by itself has no other pages to link to
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", cell.source
            )
    files.append(
        File.generated(
            config, "first_model.ipynb", content=jupytext.writes(notebook, fmt="ipynb")
        )
    )
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """The changelog is the file at the root, whose links start there."""
    if page.file.src_uri != "changelog.md":
        return markdown
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")


def on_page_content(content: str, **kwargs: Any) -> str:
    """Formulas as MathML, which browsers typeset without a script."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
        _mathml,
        content,
        flags=re.DOTALL,
    )


def _mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[1] == "div" else "inline"
    return latex2mathml.converter.convert(html.unescape(formula[2]), display=display)
