{
  // The address of this server as the reader's browser has it: only here is it known.
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  for (const place of document.querySelectorAll(".address")) place.textContent = base;

  for (const advice of document.querySelectorAll(".without-script")) advice.hidden = true;

  const copy = async (text, block) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // the clipboard is for secure contexts alone; the older way needs a selection
      getSelection().selectAllChildren(block);
      document.execCommand("copy");
    }
  };
  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const block = button.parentElement.querySelector("code");
      await copy(block.textContent, block);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
}
