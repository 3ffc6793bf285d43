/* Elements of the page. Whatever comes from a server is set as text and never read as HTML. */

/** Return an element with *attributes* and *children*, which are elements or text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Return a small button; *name* is what it is called where it is not seen. */
export function button(text, name, action) {
  const made = element("button", { type: "button", class: "jp-mod-styled jp-mod-minimal", "aria-label": name }, text);
  made.style.cssText = "height:auto;line-height:1.8;padding:0 6px;margin:2px 4px 2px 0;border:1px solid var(--jp-border-color1)";
  made.addEventListener("click", action);
  return made;
}
