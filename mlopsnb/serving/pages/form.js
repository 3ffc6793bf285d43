{
  const form = document.getElementById("form");
  const status = document.getElementById("status");
  const outputs = document.getElementById("outputs");
  const raw = document.getElementById("raw");
  const body = document.getElementById("body");
  const command = document.getElementById("command");
  const token = document.getElementById("token");
  const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$/;
  const MOST_VALUES = 100;

  const element = (name, text, properties = {}) =>
    Object.assign(document.createElement(name), { textContent: text }, properties);

  // Numbers stay as they were typed: as JavaScript's numbers, large integers would lose their last digits.
  const number = (text) => {
    text = text.trim();
    if (text === "") return "null";
    if (NUMBER.test(text)) return text;
    return Number.isFinite(Number(text)) ? String(Number(text)) : JSON.stringify(text);
  };

  const valueOf = (field) => {
    if (field.type === "checkbox") return String(field.checked);
    return field.localName === "textarea" ? JSON.stringify(field.value) : number(field.value);
  };

  const shapeOf = (nested, rank) => {
    const shape = [];
    for (; shape.length < rank; nested = nested[0]) {
      if (!Array.isArray(nested)) break;
      shape.push(nested.length);
    }
    return shape;
  };

  const zeros = ({ datatype, shape }) => {
    const zero = { BYTES: '""', BOOL: "false" }[datatype] ?? "0";
    return `[${Array(JSON.parse(shape).reduce((a, b) => a * b, 1)).fill(zero)}]`;
  };

  const tensor = (set) => {
    const { name, datatype, shape } = set.dataset;
    const whole = set.querySelector("[data-rank]");
    let [sizes, data] = [shape, ""];
    if (!whole) {
      data = `[${[...set.querySelectorAll("input, textarea")].map(valueOf).join(", ")}]`;
    } else if (whole.value.trim() === "") {
      data = zeros(set.dataset);
    } else {
      data = whole.value.trim();
      try {
        sizes = JSON.stringify(shapeOf(JSON.parse(data), Number(whole.dataset.rank)));
      } catch { /* the server says what is wrong with it */ }
    }
    return `{"name": ${JSON.stringify(name)}, "shape": ${sizes}, "datatype": "${datatype}", "data": ${data}}`;
  };

  const request = () => `{"inputs": [${[...form.querySelectorAll("[data-name]")].map(tensor).join(", ")}]}`;

  const quoted = (text) => `'${text.replaceAll("'", `'"'"'`)}'`;

  const show = () => {
    if ([...form.querySelectorAll("[data-rank]")].some((field) => field.value.trim() === "")) return;
    const lines = [`curl ${quoted(form.action)}`, "-H 'content-type: application/json'"];
    if (token) lines.push('-H "authorization: Bearer $TOKEN"');
    lines.push(`--data-raw ${quoted(request())}`);
    command.textContent = lines.join(" \\\n  ");
  };

  const listed = (datatype, data) => {
    const shown = data.slice(0, MOST_VALUES).map(datatype === "BYTES" ? (text) => JSON.stringify(text) : String);
    const rest = data.length - MOST_VALUES;
    return shown.join(", ") + (rest > 0 ? ` … and ${rest} more` : "");
  };

  const tabled = (tensors) => {
    const rows = tensors.map(({ name, datatype, shape, data }) => {
      const row = element("tr", "");
      const type = element("td", `${datatype} [${shape.join(", ")}]`, { className: "type" });
      const values = element("td", listed(datatype, data), { className: "values" });
      row.append(element("th", name, { scope: "row" }), type, values);
      return row;
    });
    const table = element("table", "");
    table.append(element("caption", "Outputs", { className: "unseen" }), ...rows);
    return table;
  };

  // As text, numbers look as they were sent; browsers that do not hand out the source show their own.
  const parsed = (text) =>
    JSON.parse(text, (key, value, context) => {
      if (value === null) return "null";
      return typeof value === "number" ? (context?.source ?? String(value)) : value;
    });

  const tell = (text, outcome) => {
    status.textContent = text;
    status.className = outcome;
  };

  const send = async () => {
    const headers = { "content-type": "application/json" };
    if (token?.value) headers.authorization = `Bearer ${token.value}`;
    const begin = performance.now();
    const answer = await fetch(form.action, { method: "POST", headers, body: request() });
    const text = await answer.text();
    const told = `${answer.status} in ${(performance.now() - begin).toFixed(1)} ms`;
    body.textContent = text;
    raw.hidden = false;
    if (answer.ok) {
      outputs.replaceChildren(tabled(parsed(text).outputs));
      tell(told, "good");
      return;
    }
    let message = text;
    try {
      message = JSON.parse(text).error ?? text;
    } catch { /* not from this server, but from something before it */ }
    outputs.replaceChildren(element("p", message, { className: "error" }));
    tell(told, "bad");
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    try {
      await send();
    } catch (error) {
      outputs.replaceChildren();
      raw.hidden = true;
      tell(`No answer: ${error.message}`, "bad");
    } finally {
      button.disabled = false;
    }
  });
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
  show();
}
