"""The documentation says what the program does: help texts, examples, links, versions, docstrings."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

import penjing
import picture
from penjing import errors
from penjing.cli import main, make_parser
from penjing.search import candidates, choose
from penjing.workload import Workload
from worlds import MIB, question

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "penjing"
MODULES = sorted(PACKAGE.rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

OBVIOUS_LINES = 6  # a public function that is no longer may do without a docstring
SVG = "{http://www.w3.org/2000/svg}"
SEPARATORS = {"|", "||", ";", "&", "&&"}


def load_make() -> ModuleType:
    spec = util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HELP = load_make().help_texts()


def test_the_reference_is_up_to_date():
    """docs/reference.md is what `python docs/make.py` writes."""
    assert 0 == make("--check", folder=ROOT / "docs").returncode


def test_a_stale_reference_is_noticed_and_renewed(tmp_path):
    """`--check` refuses a page that differs and says what to do; without it the page is written."""
    shutil.copy(ROOT / "docs" / "make.py", tmp_path)
    (tmp_path / "reference.md").write_text("# Reference\n")

    stale = make("--check", folder=tmp_path)
    make(folder=tmp_path)

    assert (1, "hint: python docs/make.py") == (stale.returncode, stale.stderr.splitlines()[-1])
    assert 0 == make("--check", folder=tmp_path).returncode
    assert (ROOT / "docs" / "reference.md").read_bytes() == (tmp_path / "reference.md").read_bytes()


@pytest.mark.parametrize("columns", ["40", "300"])
def test_the_reference_does_not_depend_on_the_terminal(columns, monkeypatch):
    """Whoever writes it, in a narrow or a wide window, gets the same page."""
    monkeypatch.setenv("COLUMNS", columns)

    assert load_make().help_texts() == HELP


@pytest.mark.parametrize("command", HELP)
def test_every_command_teaches_by_example(command):
    """The help of each command ends with examples, one at least of that very command, and all of them parse."""
    taught = [words for line in examples(HELP[command]) for words in commands(line)]

    assert any(command.split() == words[: len(command.split())] for words in taught)
    for words in taught:
        parses(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_pages_parse(page):
    """Every `penjing …` line of a code block is a command line that exists."""
    for line in code_lines(page.read_text("utf-8")):
        for words in commands(line):
            parses(words)


def test_an_example_that_is_wrong_is_noticed():
    """The readers above find commands behind pipes and semicolons, and refuse one with a wrong option."""
    page = "```console\n$ cat a | penjing run --wrong 'b  c' > d; penjing plan   # e\npenjing 0.1\n```\npenjing run"

    found = [words for line in code_lines(page) for words in commands(line)]

    assert [["penjing", "run", "--wrong", "b  c"], ["penjing", "plan"]] == found
    with pytest.raises(errors.UsageError):
        parses(found[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link and image of a page exists in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", page.read_text("utf-8"))
    relative = [t for pair in targets for t in pair if t and not re.match(r"[a-z]+:|#", t)]

    assert [] == [t for t in relative if not (page.parent / t.split("#")[0]).exists()]


def test_every_page_is_linked_from_the_readme():
    """No guide is left where nobody finds it."""
    readme = (ROOT / "README.md").read_text("utf-8")

    assert [] == [
        page.name for page in PAGES if page.parent.name == "docs" and f"docs/{page.name}" not in readme
    ]


def test_every_error_is_drawn_and_used():
    """The tree at the top of errors.py names every class there, and each has its use in another module."""
    defined = [name for name, kind in vars(errors).items() if isinstance(kind, type)]
    others = [path for path in MODULES if path.name != "errors.py"]
    used = {node.id for path in others for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}

    assert [] == [name for name in defined if f" {name} " not in (errors.__doc__ or "")]
    assert [] == [name for name in defined if name not in used]


def test_the_changelog_and_the_package_tell_one_version():
    """The newest version of CHANGELOG.md, the package's own and pyproject.toml's are the same."""
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert newest and newest[1] == penjing.__version__ == project["version"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_things_have_docstrings(path):
    """Every module, class and function that others may use says what it is for."""
    assert [] == list(undocumented(path))


def test_the_repository_speaks_of_itself_alone():
    """No tracked file names a folder of the machine it was written on, or the host of a package registry."""
    places = "/wo" + r"rk/\w+|/home/" + r"\w+/|/ro" + "ot/"
    hosts = r"py" + r"pi\.org|pythonho" + r"sted\.org|np" + r"mjs\.|crat" + r"es\.io|conda\." + r"(org|com)"
    foreign = re.compile(f"{places}|{hosts}|/opt/py" + "pi")
    listed = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    texts = {name: (ROOT / name).read_text("utf-8", "replace") for name in listed if (ROOT / name).is_file()}

    assert "README.md" in texts
    assert {} == {name: found[0] for name, text in texts.items() if (found := foreign.search(text))}


@pytest.mark.parametrize(
    ("workload", "limit", "shown"),
    [
        (Workload(), None, {"chosen", "the engine's default"}),
        (Workload(), 2**40, {"limit 1.00 TiB →"}),
        (Workload(memory_bytes=40 * MIB), 40 * MIB, {"limit 40.0 MiB"}),
        (Workload(memory_bytes=20 * MIB), 20 * MIB, {"does not fit", "engine's default"}),
        (Workload(memory_bytes=8 * MIB, allow_disk=True), 8 * MIB, {"does not fit", "left on disk"}),
    ],
)
def test_a_picture_shows_the_plan_and_its_limit(workload, limit, shown, tmp_path):
    """Its text can be read: the ways, a limit near or far, what stays on disk and what does not fit."""
    asked = question(workload, budget_bytes=limit)
    proposed = [asked.default, *candidates.frugal(asked.default)]
    verdict = choose.choose(asked, proposed)
    plan = choose.plan_of(asked, verdict, verdict.chosen)

    picture.draw(plan, limit, tmp_path / "plan.svg")

    texts = {element.text for element in ElementTree.parse(tmp_path / "plan.svg").iter(f"{SVG}text")}
    assert shown <= texts


def test_the_same_plan_gives_the_same_picture(tmp_path):
    """A picture changes in the repository only if its plan did."""
    asked = question()
    verdict = choose.choose(asked, candidates.frugal(asked.default))
    for name in ("one.svg", "other.svg"):
        picture.draw(choose.plan_of(asked, verdict, verdict.chosen), 2**30, tmp_path / name)

    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_a_picture_of_no_plan_is_refused(tmp_path, capsys):
    """A file that is no plan costs one line and exit code 2, and leaves no picture behind."""
    (tmp_path / "plan.json").write_text("{}")

    code = picture.main([str(tmp_path / "plan.json"), str(tmp_path / "plan.svg")])

    assert (2, False) == (code, (tmp_path / "plan.svg").exists())
    assert capsys.readouterr().err.startswith("error: ")


def make(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`make.py` of `folder`, run as people run it."""
    command = [sys.executable, str(folder / "make.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def examples(help_text: str) -> Iterator[str]:
    """The lines after `examples:`, without the remarks that three spaces set off."""
    for line in help_text.partition("examples:\n")[2].splitlines():
        if line.startswith("  "):
            yield line.strip().split("   ")[0]


def code_lines(page: str) -> Iterator[str]:
    """The lines of a page's code blocks that are typed: in a session only those after a `$`."""
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield line[2:]
            elif kind not in ("console", "text"):
                yield line


def commands(line: str) -> Iterator[list[str]]:
    """Every command of ours in a line of shell, as words, without what it is redirected to."""
    if "penjing" not in line:
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in SEPARATORS:
            words.append(word)
            continue
        if words[:1] == ["penjing"]:
            yield words[: words.index(">")] if ">" in words else words
        words = []


def parses(words: list[str]) -> None:
    """Raises UsageError if the command line is none of ours; nothing is run, unless it asks for help."""
    if words[-1] in ("--help", "--version"):
        with pytest.raises(SystemExit):
            main(words[1:])
    else:
        make_parser().parse_args(words[1:])


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def undocumented(path: Path) -> Iterator[str]:
    """What of a module should have a docstring and has none.

    A short function may speak by its name, a short class by its fields, and the functions behind commands
    have their help text.
    """
    module = tree(path)
    if not ast.get_docstring(module) and module.body:
        yield path.name
    for node in module.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        told = ast.get_docstring(node) or lines <= OBVIOUS_LINES or node.name == "main" or "cli" in path.parts
        if not told:
            yield node.name
