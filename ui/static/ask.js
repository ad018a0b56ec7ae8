// Questions to the server's own routes, as JSON. An answer is an object; what went wrong stands in its `error`.

const SILENT = { title: "The server does not answer.", text: "Start it again, then load this page again." };

async function read(request) {
  let response;
  try {
    response = await request;
  } catch {
    return { error: SILENT, silent: true };
  }
  if (response.status === 204) return null;
  try {
    const answer = await response.json();
    if (response.ok) return answer;
    const told = typeof answer.detail === "string" ? answer.detail : "Check what you have entered, then try again.";
    return { error: { title: "The server refuses this.", text: told } };
  } catch {
    return { error: SILENT, silent: true };
  }
}

export const get = (path) => read(fetch(path));

export const post = (path, body = {}) =>
  read(fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));
