// Opening another model for this visitor: the old one stays until the new one is there, and when it fails.

import { get, post } from "./ask.js";
import { session } from "./session.js";

const LOOK_MS = 400;
const listeners = new Set();
let turn = 0;

export const opening = {
  now: null, // {source, title, ticket, words, done, total, since}: the model on its way
  problem: null, // {source, title, text}: why the last one did not come
  hear(listener) { listeners.add(listener); listener(); },
  tell() { for (const listener of listeners) listener(); },
  forget() { this.problem = null; this.tell(); },
  fail(problem) { this.problem = problem; this.tell(); },
};

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

// True once the model is shown. `first` hears of the first answer, with which a model that is open here comes at once.
export async function openModel(source, { title = source, first = () => {} } = {}) {
  stop();
  const mine = ++turn;
  const now = { source, title, words: "starting", done: 0, total: null, since: performance.now() };
  opening.now = now;
  opening.problem = null;
  opening.tell();
  const isOver = () => mine !== turn;
  const answer = await bring(source, isOver, (told) => {
    first(told);
    if (isOver() || told.state !== "loading") return;
    Object.assign(now, { ticket: told.ticket, words: told.words, done: told.done, total: told.total });
    opening.tell();
  });
  if (isOver()) return false;
  opening.now = null;
  if (answer.error) opening.problem = { source, ...answer.error };
  else session.use(answer.model);
  opening.tell();
  return !answer.error;
}

// The server's last word on a source, {model} or {error}; it asks until there is one, or nobody waits any more
export async function bring(source, isOver, tell) {
  let answer = await post("api/open", { source });
  tell(answer);
  while (!isOver() && answer.state === "loading") {
    await wait(LOOK_MS);
    if (!isOver()) tell(answer = await get(`api/open/${answer.ticket}`));
  }
  if (isOver() && answer.ticket && answer.state === "loading") post(`api/open/${answer.ticket}/cancel`);
  return answer;
}

export function stop() {
  turn++;
  const { now } = opening;
  opening.now = null;
  if (now?.ticket) post(`api/open/${now.ticket}/cancel`);
  opening.tell();
}
