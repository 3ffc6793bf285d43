/* The plugins that JupyterLab activates: the side panel, and the command that deploys the variable under the cursor.
   Everything that changes anything is a cell in the notebook, which a person reads and runs. */

import { deployCell, insertBelow, nameUnderCursor } from "./cells.js";
import { makePanel } from "./panel.js";

const DEPLOY = "mlopsnb:deploy";
const SHOW = "mlopsnb:show-deployments";

/** Return the plugins; *lab* holds what JupyterLab's modules export. */
export function plugins(lab) {
  return [
    {
      id: "mlopsnb:panel",
      description: "A side panel with what is deployed.",
      autoStart: true,
      requires: [lab.INotebookTracker],
      optional: [lab.ICommandPalette],
      activate(app, tracker, palette) {
        const panel = makePanel(lab, app.shell, tracker);
        app.shell.add(panel, "left", { rank: 900 });
        app.commands.addCommand(SHOW, {
          label: "Show Deployments",
          caption: "Show what is deployed",
          execute: () => app.shell.activateById(panel.id),
        });
        palette?.addItem({ command: SHOW, category: "MLOps" });
      },
    },
    {
      id: "mlopsnb:deploy",
      description: "A command, and a button of notebooks, that inserts a %deploy cell.",
      autoStart: true,
      requires: [lab.INotebookTracker],
      optional: [lab.ICommandPalette],
      activate(app, tracker, palette) {
        app.commands.addCommand(DEPLOY, {
          label: "Deploy",
          caption: "Insert a cell that deploys the variable under the cursor",
          isEnabled: () => tracker.currentWidget !== null,
          execute: () => {
            const panel = tracker.currentWidget;
            insertBelow(lab, panel, deployCell(nameUnderCursor(panel)));
          },
        });
        palette?.addItem({ command: DEPLOY, category: "MLOps" });
        app.docRegistry.addWidgetExtension("Notebook", {
          createNew(panel) {
            const button = new lab.CommandToolbarButton({ commands: app.commands, id: DEPLOY });
            if (!panel.toolbar.insertAfter("cellType", "mlopsnb-deploy", button)) {
              panel.toolbar.addItem("mlopsnb-deploy", button);
            }
            return button;
          },
        });
      },
    },
  ];
}
