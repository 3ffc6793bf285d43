/* The side panel: what is deployed, read again every few seconds while it is seen. Text is only ever set as text. */

import { attachCell, insertBelow, predictCell } from "./cells.js";
import { button, element } from "./dom.js";
import { openLog } from "./log.js";
import { ask } from "./server.js";

const SECONDS = 5;
const MOST_SECONDS = 60;
const SYMBOLS = { ready: "✓", starting: "▸", stopped: "○", "not ready": "✗", unknown: "?" };

/** Return what tells of targets that could not be asked, folded: a machine without a cluster is as it should be. */
function unasked(problems) {
  if (problems.length === 0) {
    return [];
  }
  const names = problems.map(({ target }) => target).join(", ");
  const said = problems.map(({ target, message }) => element("p", {}, `${target}: ${message}`));
  return [element("details", {}, element("summary", {}, `not asked: ${names}`), ...said)];
}

/** Return the side panel as a widget of Lumino. */
export function makePanel(lab, shell, tracker) {
  const { Widget, Notification, Clipboard } = lab;

  class Deployments extends Widget {
    constructor() {
      super();
      this.id = "mlopsnb-deployments";
      this.title.caption = "Deployments";
      this.title.label = "MLOps";
      this.addClass("mlopsnb-panel");
      this.node.setAttribute("role", "region");
      this.node.setAttribute("aria-label", "Deployments");
      this.node.style.cssText = "overflow:auto;padding:8px;font-size:var(--jp-ui-font-size1);color:var(--jp-ui-font-color1);background:var(--jp-layout-color1)";
      this._list = element("ul", { "aria-label": "deployments" });
      this._list.style.cssText = "list-style:none;margin:8px 0;padding:0";
      this._said = element("div", { role: "status" }, "asking …");
      const head = element("div", {}, element("strong", {}, "Deployments "));
      head.append(button("↻", "Refresh the list of deployments", () => this.refresh()));
      this._problems = element("div");
      this.node.append(head, this._said, this._list, this._problems);
      this._pause = SECONDS;
      this._shown = "";
    }

    onAfterShow() {
      this.refresh();
    }

    onBeforeHide() {
      clearTimeout(this._timer);
    }

    onBeforeDetach() {
      clearTimeout(this._timer);
    }

    async refresh() {
      clearTimeout(this._timer);
      if (this._asking || this.isDisposed) {
        return;
      }
      this._asking = true;
      try {
        this.show_(await ask(lab, "deployments"));
        this._pause = SECONDS;
      } catch (error) {
        this._said.textContent = `✗ ${error.message}`;
        this._pause = Math.min(2 * this._pause, MOST_SECONDS);
      } finally {
        this._asking = false;
      }
      if (this.isVisible) {
        this._timer = setTimeout(() => this.refresh(), 1000 * this._pause);
      }
    }

    show_({ deployments, problems }) {
      const now = JSON.stringify([deployments, problems]);
      if (now === this._shown) {
        return; // what is the same stays, with the focus and the selection that are in it
      }
      this._shown = now;
      const count = deployments.length;
      this._said.textContent =
        count === 0 ? "nothing is deployed" : count === 1 ? "1 deployment" : `${count} deployments`;
      this._problems.replaceChildren(...unasked(problems));
      this._list.replaceChildren(...deployments.map((deployment) => this._item(deployment)));
    }

    _item(deployment) {
      const { name, target, state, model, revision, url } = deployment;
      const facts = [`${SYMBOLS[state] ?? "?"} ${state}`, target, revision ? `revision ${revision}` : "", model];
      const item = element(
        "li",
        { "aria-label": name },
        element("div", {}, element("strong", {}, name)),
        element("div", {}, facts.filter(Boolean).join(" · ")),
      );
      item.style.cssText = "border-top:1px solid var(--jp-border-color2);padding:6px 0;overflow-wrap:anywhere";
      if (url) {
        item.append(element("code", {}, url), document.createElement("br"));
        item.append(button("Copy URL", `Copy the URL of ${name}`, () => this._copy(url)));
      }
      item.append(
        button("Logs", `Open the log of ${name}`, () => openLog(lab, shell, deployment)),
        button("Attach", `Insert a cell that attaches ${name}`, () => this._insert(attachCell(deployment))),
        button("Predict", `Insert a cell that asks ${name}`, () => this._insert(predictCell(deployment))),
      );
      return item;
    }

    _copy(url) {
      Clipboard.copyToSystem(url);
      Notification.info("The URL is in the clipboard.", { autoClose: 3000 });
    }

    _insert(source) {
      if (!insertBelow(lab, tracker.currentWidget, source)) {
        Notification.warning("Open a notebook first: the cell goes below its active one.", { autoClose: 5000 });
      }
    }
  }

  return new Deployments();
}
