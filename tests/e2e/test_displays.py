"""Everything that a notebook shows, in a real browser: names for who listens, contrast in light and dark, words without style."""

import re

import pytest
from gallery import gallery
from real_lab import screenshot

pytestmark = pytest.mark.browser

DARK = "background:#111;color:#fff"
LAB = (
    "background:#212121;color:rgba(255,255,255,.87);--jp-ui-font-color1:rgba(255,255,255,.87);"
    "--jp-ui-font-color2:rgba(255,255,255,.54);--jp-border-color1:#616161;--jp-border-color2:#424242;"
    "--jp-success-color1:#4caf50;--jp-error-color1:#ff6b5f;--jp-layout-color1:#111"
)
THEMES = {"light": "background:#fff;color:#000", "dark": DARK, "lab": LAB}

# Words whose colour is nearer to what is behind them than WCAG 2.2 (1.4.3) allows.
FAINT = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  const light = rgb => {
    const [r, g, b] = rgb.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    const chain = [];
    for (let at = node; at; at = at.parentElement) chain.unshift(parse(getComputedStyle(at).backgroundColor));
    return chain.reduce((under, colour) => over(colour, under), [255, 255, 255]);
  };
  const seen = node => { let o = 1; for (let at = node; at; at = at.parentElement) o *= getComputedStyle(at).opacity; return o; };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || node.closest("[aria-hidden=true], svg, style")) continue;
    const ground = behind(node), colour = parse(getComputedStyle(node).color);
    const shown = over([...colour.slice(0, 3), (colour[3] ?? 1) * seen(node)], ground);
    const [a, b] = [light(shown), light(ground)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push([walk.currentNode.data.trim().slice(0, 40), contrast.toFixed(2)]);
  }
  return found;
}"""

NAMELESS = """() => [...document.querySelectorAll("table, pre, svg[role=img], figure img")]
  .filter(e => !e.getAttribute("aria-label") && !e.caption && !e.getAttribute("aria-labelledby") && !e.alt)
  .map(e => e.outerHTML.slice(0, 80))"""

# The words, each once, as they are read with and without any style of ours.
WORDS = """styled => {
  if (!styled) for (const e of document.querySelectorAll("[style], style")) {
    if (e.tagName === "STYLE") e.remove(); else e.removeAttribute("style");
  }
  return document.body.innerText.split(/\\s+/).filter(Boolean);
}"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return {name: html for name, (html, _) in gallery("fraud", tmp_path_factory.mktemp("package")).items()}


def test_everything_has_a_name_and_can_be_read(browser, shown):
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    sections = "".join(f'<section aria-label="{name}">{html}</section>' for name, html in shown.items())
    for theme, style in THEMES.items():
        page.set_content(f'<!doctype html><html lang="en"><body style="{style}">{sections}</body></html>')
        page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true; })")
        screenshot(page, f"displays-{theme}")
        assert page.evaluate(FAINT) == [], theme
    assert page.evaluate(NAMELESS) == []

    def heard(name):
        return page.locator(f'section[aria-label="{name}"]').aria_snapshot()

    tables = {
        "Artifact": ["artifact", "signature", "parity checks"],
        "Model": ["model version", "lineage"],
        "Image": ["image", "layers"],
        "Deployment": ["deployment"],
        "Deployments": ["Deployments", "In the background of this kernel"],
        "Revisions": ["Revisions"],
        "Plan": ["Plan (nothing was done)"],
        "doctor": ["what works here"],
        "failed card": ["notes", "steps", "verdict"],
    }
    for name, labels in tables.items():
        told = heard(name)
        assert re.findall(r'table "([^"]*)"', told) == labels, told
        assert "columnheader" in told or "rowheader" in told
    for name, words in {
        "Artifact": ["✓ equal", "✗ differs"],
        "Deployment": ['group "Deployment fraud"', "✗ not ready"],
        "Deployments": ["✗ failed"],
        "Revisions": ["✓ running", "▸ starting"],
        "running card": ["status", "▸ running", "✓ done"],
        "background card": ["running in the background"],
        "failed card": ["✗ failed", "what to do"],
        "cancelled card": ["⊘ cancelled"],
        "log": ['region "log"'],
        "doctor": ["✗ broken", "✓ works"],
    }.items():
        told = heard(name)
        assert [word for word in words if word not in told] == [], told
    styled = page.evaluate(WORDS, True)
    assert page.evaluate(WORDS, False) == styled
    assert (asked, wrong) == ([], [])
