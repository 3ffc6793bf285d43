"""Whatever somebody calls a deployment, a feature or a pod, and whatever a log says: every display and every text is safe."""

import re
from html.parser import HTMLParser

import pytest
from gallery import gallery, records

from mlopsnb.notebook.documents import document

EVIL = "<img src=x onerror=alert(1)>"
CLOSING = "\"'></td></table></pre></title><svg/onload=alert(1)>&lt;"
COLOURED = "\x1b[31mred\x1b]0;title\x07\x00"
SECRET = "hunter2-s3cret"
TELLING = f"https://ann:{SECRET}@host password={SECRET} 'api_key': '{SECRET}' Bearer {SECRET} TOKEN={SECRET}"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.words = set(), []

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.found |= {name for name, _ in attrs if name.startswith("on")}
        links = [value for name, value in attrs if name in ("href", "src", "action")]
        self.found |= {link for link in links if not link.startswith(("#", "data:image/"))}

    def handle_data(self, data):
        self.words.append(data)


def tags_of(html):
    tags = Tags()
    tags.feed(html)
    return tags


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What is shown of a word that is nothing but one."""
    return gallery("word", tmp_path_factory.mktemp("package"))


@pytest.mark.parametrize("word", [EVIL, CLOSING])
def test_a_name_is_text_wherever_it_is_shown(plain, word, tmp_path):
    for what, (html, _) in gallery(word, tmp_path).items():
        tags, harmless = tags_of(html), tags_of(plain[what][0])
        assert tags.found - harmless.found == set(), what
        shown, wanted = "".join(tags.words), "".join(harmless.words)
        assert shown.count(word[:20]) >= min(1, wanted.count("word")), what


def test_no_terminal_is_told_what_to_do(tmp_path):
    for what, shown in gallery(COLOURED, tmp_path).items():
        for said in shown:
            assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f]", said) == [], what


def test_what_looks_secret_is_shown_and_printed_nowhere(tmp_path):
    for what, shown in gallery(TELLING, tmp_path, "fraud").items():
        assert [said for said in shown if SECRET in said or "s3cret" in said] == [], what


def test_the_environment_of_a_server_is_in_no_text(tmp_path):
    for what, record in records(SECRET, tmp_path).items():
        if what in ("Plan", "Revisions"):
            assert "PASSWORD" not in repr(tuple(record)) + str(record), what
    for what in ("Deployment", "Deployments", "log", "traffic", "drift"):
        said = document(records(TELLING, tmp_path)[what])
        assert "\\u001b" not in said
