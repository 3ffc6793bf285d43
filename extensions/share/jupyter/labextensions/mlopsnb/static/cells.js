/* What is put into notebooks: pure functions of text, and the one that inserts a cell. */

const ASSIGNED = /^\s*([A-Za-z_]\w*)\s*(?::[^=]+)?=(?!=)/;
const LOADS = /^\s*%(?:load|reload)_ext\s+mlopsnb\b/m;
const WORD = /[A-Za-z_]\w*/g;
const KEYWORDS = new Set(
  ("False None True and as assert async await break class continue def del elif else except finally for from global if " +
    "import in is lambda nonlocal not or pass raise return try while with yield").split(" "),
);

/** Return the name at *column* of *line*; of a line that assigns, the name it assigns to if no name is there; else "". */
export function nameAt(line, column) {
  for (const found of line.matchAll(WORD)) {
    if (found.index <= column && column <= found.index + found[0].length && !KEYWORDS.has(found[0])) {
      return found[0];
    }
  }
  return line.match(ASSIGNED)?.[1] ?? "";
}

/** Return *name* as a DNS label, which every target takes as a name; the magic %deploy makes the same of it. */
export function label(name) {
  return name
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .slice(0, 63)
    .replace(/^-+|-+$/g, "");
}

/** Return the lines that a cell needs before a magic of ours, in a notebook of these *sources*. */
export function loading(sources) {
  return sources.some((source) => LOADS.test(source)) ? "" : "%load_ext mlopsnb\n";
}

/** Return the cell that deploys the variable *name*. */
export function deployCell(name) {
  const model = name || "model";
  return `dep = %deploy ${model} --name ${label(model) || "model"}`;
}

/** Return the cell that takes a deployment back into a notebook. */
export function attachCell(deployment) {
  return `dep = %attach ${deployment.name} --target ${deployment.target}`;
}

/** Return the cell that asks a deployment for predictions. */
export function predictCell(deployment) {
  return `%predict ${deployment.name} X --target ${deployment.target}`;
}

/** Insert a code cell below the active one and return whether there was a notebook to put it into. */
export function insertBelow(lab, panel, source) {
  if (!panel) {
    return false;
  }
  const notebook = panel.content;
  const sources = notebook.widgets.map((cell) => cell.model.sharedModel.getSource());
  lab.NotebookActions.insertBelow(notebook);
  lab.NotebookActions.changeCellType(notebook, "code");
  notebook.activeCell.model.sharedModel.setSource(loading(sources) + source);
  notebook.mode = "edit";
  return true;
}

/** Return the name under the cursor of the notebook's active cell. */
export function nameUnderCursor(panel) {
  const editor = panel?.content.activeCell?.editor;
  if (!editor) {
    return "";
  }
  const { line, column } = editor.getCursorPosition();
  return nameAt(editor.getLine(line) ?? "", column);
}
