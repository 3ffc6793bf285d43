"""What the README and the docs tell to type exists: magics and their options, commands, Python names, settings, rights.

`tests/e2e/test_readme.py` runs the blocks that can run anywhere.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

import mlopsnb as ml
from mlopsnb import cli
from mlopsnb.notebook.grammar import SETTINGS_WORDS, VERBS
from mlopsnb.notebook.parsing import meant, parse
from mlopsnb.notebook.splitting import UsageError, split
from mlopsnb.serving import arguments
from mlopsnb.settings import Settings
from mlopsnb.targets import rights

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
MAGIC = re.compile(r"^\s*(?:\w+ = )?%(\w+)[ ]?(.*)$", re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?python -m (mlopsnb(?:\.serving)?) (.*)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
SETTINGS = {field.name for field in fields(Settings)}
VARIABLE = re.compile(r"\bMLOPSNB_[A-Z_]+\b")
CODE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mlopsnb").rglob("*.py"))
VARIABLES = {f"MLOPSNB_{name.upper()}" for name in SETTINGS} | set(VARIABLE.findall(CODE))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page, *languages):
    text = page.read_text(encoding="utf-8")
    return [body for _, language, body in FENCED.findall(text) if language in languages]


def inline(page):
    return INLINE.findall(FENCED.sub("", page.read_text(encoding="utf-8")))


def check_magic(name, line):
    """Raise `UsageError` if the magic's own parser would, and fail for a magic that is not ours."""
    if name == "mlopsnb":
        word, *pairs = [*split(line), ""]
        assert word in (*SETTINGS_WORDS, ""), line
        assert {pair.partition("=")[0] for pair in pairs if pair} <= SETTINGS, line
    elif name in VERBS:
        line = line.rstrip().removesuffix(";")
        parse(meant(VERBS[name], line), line)
    else:
        assert name in ("load_ext", "unload_ext", "env"), name


@each_page
def test_magics_are_taken_by_their_parser(page):
    for body in blocks(page, "", "py", "python"):
        for name, line in MAGIC.findall(body.replace("\\\n", " ")):
            check_magic(name, line)


def test_what_no_magic_takes_is_noticed():
    with pytest.raises(UsageError, match="no option --exampel"):
        check_magic("deploy", "model --exampel X")


@each_page
def test_options_beside_a_magic_in_the_text_are_its_own(page):
    for code in inline(page):
        found = re.match(r"%(\w+) ", code)
        if found and found[1] in VERBS:
            known = {o.flag for v in (VERBS[found[1]], VERBS[found[1]].alone) if v for o in v.options}
            assert set(OPTION.findall(code)) <= known, code


def trees(page):
    manager = TransformerManager()
    return [ast.parse(manager.transform_cell(body)) for body in blocks(page, "py", "python")]


@each_page
def test_python_blocks_compile_and_call_what_there_is(page):
    owners = {"ml": ml, "dep": ml.Deployment}
    for node in (node for tree in trees(page) for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlopsnb"):
            exec(ast.unparse(node))
        function = getattr(node, "func", node)
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            owner = owners.get(function.value.id)
            if owner is not None and function.attr not in (
                "name",
                "target",
            ):  # a deployment's own, not its class's
                found = getattr(owner, function.attr)
                if isinstance(node, ast.Call):
                    known = inspect.signature(found).parameters
                    assert {k.arg for k in node.keywords if k.arg} <= set(known), ast.unparse(node)


@each_page
def test_commands_are_taken_by_their_parser(page, capsys):
    for body in blocks(page, "", "sh"):
        for module, line in COMMAND.findall(body):
            parser = cli._parser() if module == "mlopsnb" else arguments.parser()
            parser.parse_args(shlex.split(line.removesuffix(" &")))


def test_options_of_the_server_exist():
    page = ROOT / "docs" / "serving.md"
    ours = {o.flag for v in VERBS.values() for o in v.options}
    told = {o for code in inline(page) if "benchmarks/" not in code for o in OPTION.findall(code)}
    assert told - set(OPTION.findall(arguments.parser().format_help())) - ours == set()


@each_page
def test_settings_and_variables_exist(page):
    assert set(VARIABLE.findall(page.read_text(encoding="utf-8"))) <= VARIABLES
    for body in blocks(page, "toml"):
        assert set(tomllib.loads(body)["tool"]["mlopsnb"]) <= SETTINGS


def test_role_that_is_enough_has_the_rights_that_are_asked_for():
    [body] = blocks(ROOT / "docs" / "how-to" / "no-rights.md", "yaml")
    rules = yaml.safe_load(body)["rules"]
    told = {
        (g, r): set(rule["verbs"]) for rule in rules for g in rule["apiGroups"] for r in rule["resources"]
    }
    assert told == {what: set(verbs) for what, verbs in rights.ALWAYS.items()}
