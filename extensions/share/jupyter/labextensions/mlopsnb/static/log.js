/* The last lines of a deployment's log, in a tab of the main area. */

import { button, element } from "./dom.js";
import { ask } from "./server.js";

/** Open the log of *deployment*, or bring the tab that shows it to the front, and read it again. */
export function openLog(lab, shell, { name, target }) {
  const id = `mlopsnb-log-${target}-${name}`;
  let tab = [...shell.widgets("main")].find((widget) => widget.id === id);
  if (!tab) {
    tab = makeLog(lab, name, target);
    tab.id = id;
    shell.add(tab, "main");
  }
  shell.activateById(id);
  return tab.content.refresh();
}

function makeLog(lab, name, target) {
  const content = new lab.Widget();
  const said = element("div", { role: "status" });
  const text = element("pre", { tabindex: "0", role: "region", "aria-label": `log of ${name}` });
  const again = button("↻ Refresh", `Refresh the log of ${name}`, () => content.refresh());
  content.node.style.cssText =
    "overflow:auto;padding:8px;color:var(--jp-ui-font-color1);background:var(--jp-layout-color1);font-size:var(--jp-ui-font-size1)";
  text.style.cssText = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:var(--jp-code-font-size)";
  content.node.append(again, said, text);
  content.refresh = async () => {
    try {
      const { lines, left_out } = await ask(lab, "deployments", target, name, "logs");
      said.textContent = left_out ? `… ${left_out} earlier lines left out; %logs ${name} has them` : "";
      text.textContent = lines.join("\n") || "the log is empty";
      content.node.scrollTop = content.node.scrollHeight;
    } catch (error) {
      said.textContent = `✗ ${error.message}`;
    }
  };
  const tab = new lab.MainAreaWidget({ content });
  tab.title.label = `log: ${name}`;
  tab.title.closable = true;
  return tab;
}
