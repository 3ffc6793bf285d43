/* What JupyterLab loads: a container of module federation, written by hand. Nothing here is built or generated.

   JupyterLab puts its own modules into the shared scope: scope[name][version].get() gives a promise of what makes one.
   Our own modules are ordinary JavaScript modules beside this file; each is a function of the modules that it uses. */
(() => {
  "use strict";
  const here = document.currentScript.src;
  const uses = [
    "@jupyterlab/apputils",
    "@jupyterlab/coreutils",
    "@jupyterlab/notebook",
    "@jupyterlab/services",
    "@jupyterlab/ui-components",
    "@lumino/widgets",
  ];
  let shared;

  async function take(name) {
    const versions = Object.values(shared[name] ?? {});
    if (versions.length === 0) {
      throw new Error(`mlopsnb: this JupyterLab does not share ${name}`);
    }
    return (await versions[versions.length - 1].get())();
  }

  async function extension() {
    const [{ plugins }, ...modules] = await Promise.all([
      import(new URL("plugins.js", here).href),
      ...uses.map(take),
    ]);
    return plugins(Object.assign({}, ...modules));
  }

  (globalThis._JUPYTERLAB ??= {}).mlopsnb = {
    init(scope) {
      shared = scope;
    },
    async get(name) {
      if (name !== "./extension") {
        throw new Error(`mlopsnb has no module ${name}`);
      }
      const made = await extension();
      return () => ({ __esModule: true, default: made });
    },
  };
})();
