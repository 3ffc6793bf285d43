from __future__ import annotations

import shlex
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.errors import UserError
from mlopsnb.notebook.splitting import UsageError, expand, split


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("model", ["model"]),
        ("model --name 'my iris'  --port=8", ["model", "--name", "my iris", "--port=8"]),
        ('model --name "my \\"best\\" iris"', ["model", "--name", 'my "best" iris']),
        ("(x, y)", ["(x, y)"]),
        ("model --example X[['a', \"b c\"]]", ["model", "--example", "X[['a', \"b c\"]]"]),
        ("f({'a': [1, 2]}, ')')", ["f({'a': [1, 2]}, ')')"]),
        ("--name {names[0] + ' x'}-v2", ["--name", "{names[0] + ' x'}-v2"]),
        ("'a (b'", ["a (b"]),
        ("''", [""]),
        (r"a\ b", ["a b"]),
        ("X_test[:5]", ["X_test[:5]"]),
        (r"f('it\'s (')", [r"f('it\'s (')"]),
    ],
)
def test_split(line, words):
    assert split(line) == words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model --name 'iris", "a quotation is not closed: 'iris"),
        ("X[:5", "'[' is not closed: [:5"),
        ("f(x]", "']' does not close '(': (x]"),
        ("f('a", "'(' is not closed: ('a"),
        ("a\\", "the line ends with a backslash"),
    ],
)
def test_split_says_what_is_not_closed(line, message):
    with pytest.raises(UsageError) as caught:
        split(line)
    assert str(caught.value) == message


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="()[]{}\x00"), max_size=40))
def test_split_is_the_shells_where_there_are_no_brackets(line):
    try:
        wanted = shlex.split(line, posix=True)
    except ValueError:
        with pytest.raises(UsageError):
            split(line)
    else:
        assert split(line) == wanted


@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
    )
)
def test_quoted_words_come_back(words):
    assert split(shlex.join(words)) == words


@given(st.text(max_size=60))
def test_split_and_expand_only_ever_raise_usage_errors(text):
    for call in (lambda: split(text), lambda: expand(text, str)):
        with suppress(UsageError):
            call()


def test_expand():
    values = {"v": 3, "d['}']": "brace", "names[0]": "iris"}
    assert expand("models:/{names[0]}/{v}", values.__getitem__) == "models:/iris/3"
    assert expand("{{v}} {d['}']}", values.__getitem__) == "{v} brace"


@given(st.text(max_size=30))
def test_doubled_braces_stand_for_themselves(text):
    assert expand(text.replace("{", "{{").replace("}", "}}"), str) == text


@pytest.mark.parametrize("text", ["{v", "v}", "{f(}"])
def test_expand_refuses_braces_that_do_not_match(text):
    with pytest.raises(UsageError):
        expand(text, str)


def test_a_usage_error_is_one_of_ours_and_of_ipythons():
    from IPython.core.error import UsageError as IPythonUsageError

    assert issubclass(UsageError, UserError)
    assert issubclass(UsageError, IPythonUsageError)
    assert UsageError("no", hint="try")._render_traceback_() == ["UsageError: no", "  hint: try"]
