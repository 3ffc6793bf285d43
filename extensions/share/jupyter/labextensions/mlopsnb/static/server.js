/* What the Jupyter server tells of deployments. Only GET; JupyterLab adds the credentials. */

/** Return the answer of one of our routes; an error says in words what is wrong. */
export async function ask(lab, ...path) {
  const settings = lab.ServerConnection.makeSettings();
  const url = lab.URLExt.join(settings.baseUrl, "mlopsnb", ...path.map(encodeURIComponent));
  const response = await lab.ServerConnection.makeRequest(url, { method: "GET", cache: "no-store" }, settings);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(
      response.status === 404 && !answer.message
        ? "the Jupyter server does not know mlopsnb: install it where the server runs, and restart it"
        : answer.message || `the Jupyter server answered ${response.status}`,
    );
  }
  return answer;
}
