"""The documentation, where `mkdocs build --strict` does not look."""

import ast
import pathlib
import re
import tomllib

import pytest

import untied_rnn
import untied_rnn.sharing

ROOT = pathlib.Path(__file__).parent.parent
# Elsewhere there is a part of the tree only.
pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="needs a whole checkout")


def public_names(module):
    """What a module defines for users, without importing what it needs."""
    tree = ast.parse((ROOT / f"untied_rnn/{module}.py").read_text())
    definitions = (node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)))
    return [f"untied_rnn.{module}.{node.name}" for node in definitions if not node.name.startswith("_")]


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", without_code, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_reference_has_every_public_name_once():
    optional = [
        module for module in ("callbacks", "plot", "tuning") if (ROOT / f"untied_rnn/{module}.py").exists()
    ]
    expected = [f"untied_rnn.{name}" for name in untied_rnn.__all__]
    expected += [f"untied_rnn.sharing.{name}" for name in untied_rnn.sharing.__all__]
    expected += [name for module in optional for name in public_names(module)]
    pages = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    assert sorted(re.findall(r"^::: (\S+)$", pages, flags=re.MULTILINE)) == sorted(expected)


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_outside_of_the_site_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for path, _, anchor in (link.partition("#") for link in re.findall(r"\]\((?!https?:)(\S+?)\)", text)):
        target = ROOT / (path or page)
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), f"{path}#{anchor}"


def test_page_of_libraries_shows_every_file_once():
    shown = re.findall(r'^--8<-- "(\S+)"$', (ROOT / "docs/libraries.md").read_text(), flags=re.MULTILINE)
    files = (ROOT / "tests/benchmarks/lstms").glob("[!_]*.py")
    assert sorted(shown) == sorted(str(path.relative_to(ROOT)) for path in files)


def test_files_that_contributors_are_told_of_exist():
    paths = re.findall(r"`((?:untied_rnn|tests|docs|\.ci)/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_release_and_address_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.findall(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0]
    citation = (ROOT / "CITATION.cff").read_text()
    cited = re.search(r'^version: (\S+)\ndate-released: "(\S+)"$', citation, flags=re.MULTILINE).groups()
    assert (project["version"], newest[1]) == newest == cited
    assert f"version = {{{newest[0]}}}" in (ROOT / "docs/cite.md").read_text()
    files = [
        "pyproject.toml",
        "mkdocs.yml",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "SECURITY.md",
        ".github/ISSUE_TEMPLATE/config.yml",
    ]
    for file in files:
        addresses = re.findall(r"github(?:usercontent)?\.com/([\w-]+/untied_rnn)", (ROOT / file).read_text())
        assert {f"https://github.com/{address}" for address in addresses} == {project["urls"]["Source"]}, file
