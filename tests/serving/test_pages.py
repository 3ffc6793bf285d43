from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from mlopsnb.manifest import Manifest
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import pages
from mlopsnb.serving.model import Package
from mlopsnb.serving.routes import ServedModel

EVIL = "</script><script>alert(1)</script>&\"'`$(touch x) ü"
CHROMIUM = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
)
PAGES = ("/", "/docs")


class Page(HTMLParser):
    """What is in a page: its elements with their attributes, the text of its blocks of code, and all that is read."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.codes, self.text = [], [], ""
        self._inside = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("pre", "script", "style"):
            self._inside = tag
        if tag == "pre":
            self.codes.append("")

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data):
        if self._inside in (None, "pre"):
            self.text += data
        if self._inside == "pre":
            self.codes[-1] += data


@pytest.fixture
def evil(serve, make_echo):
    """A server of a model whose every name and value is out to break pages and commands."""
    inputs = {f"x{EVIL}": np.array([["it's", EVIL]], object), "n": np.array([np.nan])}
    return serve(make_echo(inputs, features=(EVIL, "plain")), "--port", "0", "--name", "m")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_needs_nothing_else_and_nothing_else_may_run_on_it(served, path):
    answer = served.get(path)
    policy = answer.headers["content-security-policy"]
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert re.sub(r"'sha256-[A-Za-z0-9+/]{43}='", "HASH", policy).startswith(
        "default-src 'none'; style-src HASH; script-src HASH; connect-src "
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = Page(answer.body.decode())
    loaded = [a[k] for _, a in page.elements for k in ("src", "href") if k in a and not a[k].startswith("#")]
    assert {re.sub("^data:.*", "data:", url) for url in loaded} == {"data:", "./", "docs", "openapi.json"}
    assert [a for _, a in page.elements if any(name.startswith("on") or name == "style" for name in a)] == []


@pytest.mark.parametrize("path", [*PAGES, "/openapi.json"])
def test_pages_are_made_once_and_take_head(served, path):
    first, second, head = served.get(path), served.get(path), served.request("HEAD", path)
    assert first.body == second.body
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(first.body)))
    assert served.request("POST", path, b"{}").status == 405


def test_nothing_is_imported_before_it_is_asked_for():
    code = (
        "import sys; from mlopsnb.serving import app, pages;"
        "print([m for m in sys.modules if m.startswith(('mlopsnb.serving.openapi', 'mlopsnb.serving.pages.'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_files_of_the_pages_are_in_the_package():
    files = {path.name for path in resources.files("mlopsnb.serving.pages").iterdir()}
    assert {"common.js", "form.js", "page.css"} <= files


@pytest.mark.parametrize("path", PAGES)
def test_what_users_named_is_text(evil, path):
    html = evil.get(path).body.decode()
    page = Page(html)
    assert [tag for tag, _ in page.elements].count("script") == html.count("<script") == 1
    assert EVIL in page.text


def test_where_tokens_are_asked_for_the_pages_ask_too():
    spec = TensorSpec(name="x", dtype="float32", shape=(None, 2))
    manifest = Manifest(format="echo", signature=Signature(inputs=(spec,), outputs=(spec,)), files={})
    package = Package(path=Path(), manifest=manifest, golden={"x": np.ones((1, 2), np.float32)})
    model = ServedModel(name="m", version="1", manifest=manifest)
    texts = {}
    for protected in ((), ("/v2/models/m/infer",)):
        shown = {
            p: r.show(True).body.decode()
            for p, r in pages.routes(model, package, protected=protected).items()
        }
        texts[bool(protected)] = {path: Page(shown[path]) for path in PAGES}
    assert "Bearer token" in texts[True]["/"].text
    assert '-H "authorization: Bearer $TOKEN"' in texts[True]["/"].text
    assert "Unauthorized" in texts[True]["/docs"].text
    assert 'os.environ["TOKEN"]' in texts[True]["/docs"].text
    for word in ("Bearer", "TOKEN", "Unauthorized"):
        assert word not in texts[False]["/"].text + texts[False]["/docs"].text


def test_docs_read_well_without_scripts(served):
    page = Page(served.get("/docs").body.decode())
    paths = served.get("/openapi.json").json()["paths"]
    assert [path for path in paths if path not in page.text] == []
    headings = [a.get("id") for tag, a in page.elements if tag == "h2"]
    assert headings == [
        *(
            "the-model",
            "open-inference-protocol",
            "tensorflow-serving",
            "mlflow",
            "operations",
            "headers",
            "errors",
        ),
    ]


def run(command, runtime, **env):
    """Run *command* as it is in a page, but for the address, which a browser would know."""
    command = command.replace("http://localhost:8080", f"http://127.0.0.1:{runtime.port}")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, executable="/bin/sh")
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(runtime, path="/docs"):
    page = Page(runtime.get(path).body.decode())
    return [code for code in page.codes if code.startswith(("curl ", "{ printf"))]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH")
@pytest.mark.parametrize("name", ["served", "evil"])
def test_every_command_can_be_pasted(request, name):
    runtime = request.getfixturevalue(name)
    found = [
        json.loads(run(f"{command} -s", runtime)) for command in commands(runtime) + commands(runtime, "/")
    ]
    assert len(found) >= 6
    assert [answer for answer in found if not {"outputs", "predictions"} & answer.keys()] == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH")
def test_a_long_example_is_sent_as_raw_zeros(serve, make_echo):
    inputs = {"x": np.ones((1, 3, 99, 99), np.float32), "s": np.array([["é"] * 3], object)}
    runtime = serve(make_echo(inputs), "--port", "0", "--name", "m")
    (command,) = commands(runtime)
    assert [command] == commands(runtime, "/")
    outputs = json.loads(run(f"{command} -s", runtime))["outputs"]
    assert {o["name"]: (o["shape"], set(o["data"])) for o in outputs} == {
        "out_x": ([1, 3, 99, 99], {0}),
        "out_s": ([1, 3], {""}),
    }


@pytest.mark.parametrize("name", ["served", "evil"])
def test_the_program_in_python_runs(request, name):
    runtime = request.getfixturevalue(name)
    page = Page(runtime.get("/docs").body.decode())
    (program,) = [code for code in page.codes if code.startswith("import json")]
    program = program.replace("http://localhost:8080", f"http://127.0.0.1:{runtime.port}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "'outputs': [{" in done.stdout, done.stderr


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)


@pytest.fixture
def visit(browser):
    """Open a page of a server; nothing may go wrong there and nothing be asked of anybody else."""
    wrong = []
    served_by = set()

    def open_page(runtime, path, **options):
        address = f"http://127.0.0.1:{runtime.port}"
        served_by.add(address)
        page = browser.new_context(**options).new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}{path}")
        return page

    asked = []
    yield open_page
    assert [url for url in asked if not url.startswith((*served_by, "data:"))] == []
    told_by_chromium = re.compile(r"Failed to load resource: .*(status of 400|ERR_CONNECTION_REFUSED)")
    assert [text for text in wrong if not told_by_chromium.match(text)] == []


def rows(page):
    """Return the table of outputs as lists of text."""
    return [row.locator("th, td").all_inner_texts() for row in page.locator("#outputs tr").all()]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_prediction_by_hand(served, visit, scheme):
    from playwright.sync_api import expect

    page = visit(served, "/", color_scheme=scheme)
    status = page.get_by_role("status")
    page.get_by_label("x[2]").fill("")
    page.get_by_label("x[3]").fill("-2.5e0")
    page.get_by_label("n", exact=True).fill("7")
    page.get_by_label("x[2]").press("Enter")
    expect(status).to_have_text(re.compile(r"^200 in [\d.]+ ms$"))
    assert rows(page) == [["y", "FP32 [1]", "null"], ["sign", "BYTES [1]", '"+"']]
    page.get_by_label("x[2]").fill("0.25")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#outputs td").nth(1)).to_have_text("2.75")
    command = page.locator("#command").inner_text()
    assert json.loads(run(f"{command} -s", served))["outputs"][0]["data"] == [2.75]

    page.get_by_label("n", exact=True).fill("300")
    page.get_by_role("button", name="Predict").click()
    expect(status).to_have_text(re.compile("^400 in"))
    expect(page.locator("#outputs")).to_have_text(
        "input 'n': expected a whole number from -128 to 127, found 300 at data[0]"
    )
    page.get_by_role("button", name="Reset").click()
    expect(page.get_by_label("n", exact=True)).to_have_value("0")


@pytest.mark.browser
def test_a_server_that_is_gone_is_told(served, visit):
    from playwright.sync_api import expect

    page = visit(served, "/")
    served.stop()
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("^No answer: "))


@pytest.mark.browser
def test_every_kind_of_field_keeps_its_value(serve, make_echo, visit):
    from playwright.sync_api import expect

    inputs = {
        "big": np.array([[2**64 - 1, 0]], np.uint64),
        "small": np.array([-(2**63)]),
        "truth": np.array([[True, False]]),
        "text": np.array(["\na 'quoted' \"text\"\twith ü\nlines"], object),
        "half": np.array([[0.1, np.nan]], np.float16),
        "tokens": np.array([[1, 2, 3]], np.int32),
        "image": np.arange(2 * 8 * 8, dtype=np.uint8).reshape(1, 2, 8, 8),
    }
    runtime = serve(make_echo(inputs, shapes={"tokens": (None, None)}), "--port", "0", "--name", "m")
    page = visit(runtime, "/")
    page.get_by_role("textbox", name="Nested lists of shape [n, *]").fill("[[5, 6, 7, 8]]")
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("^200 "))
    assert rows(page) == [
        ["out_big", "UINT64 [1, 2]", "18446744073709551615, 0"],
        ["out_small", "INT64 [1]", "-9223372036854775808"],
        ["out_truth", "BOOL [1, 2]", "true, false"],
        ["out_text", "BYTES [1]", json.dumps(inputs["text"][0], ensure_ascii=False)],
        ["out_half", "FP16 [1, 2]", "0.099975586, null"],
        ["out_tokens", "INT32 [1, 4]", "5, 6, 7, 8"],
        ["out_image", "UINT8 [1, 2, 8, 8]", ", ".join(map(str, range(100))) + " … and 28 more"],
    ]
    page.get_by_label("Nested lists of shape [n, *]").fill("[[5, 6")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#outputs")).to_contain_text("the request is not JSON")


@pytest.mark.browser
def test_names_are_text_in_a_browser_too(evil, visit):
    from playwright.sync_api import expect

    for path in PAGES:
        expect(visit(evil, path).locator("main")).to_contain_text(EVIL)
    page = visit(evil, "/")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#outputs")).to_contain_text(EVIL)


@pytest.mark.browser
def test_docs_know_their_address_and_need_no_mouse(served, visit):
    from playwright.sync_api import expect

    page = visit(served, "/docs")
    expect(page.locator("#open-inference-protocol ~ .code code").first).to_contain_text(
        f"curl http://127.0.0.1:{served.port}/v2/models/affine/infer"
    )
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Try it")).to_be_focused()
    page.get_by_role("button", name="Copy").first.press("Enter")
    expect(page.get_by_role("button", name="Copied")).to_be_visible()


@pytest.mark.browser
def test_pages_work_without_scripts(served, visit):
    from playwright.sync_api import expect

    page = visit(served, "/", java_script_enabled=False)
    expect(page.get_by_text("The form needs JavaScript")).to_be_visible()
    expect(page.locator("#command")).to_contain_text("curl http://localhost:8080/v2/models/affine/infer")
    expect(visit(served, "/docs", java_script_enabled=False).locator("#errors")).to_be_visible()
