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
  let answer = await post("api/open", { source });
  const isOver = () => mine !== turn;
  const leave = () => { if (answer.ticket && answer.state === "loading") post(`api/open/${answer.ticket}/cancel`); };
  first(answer);
  if (isOver()) leave();
  while (!isOver() && answer.state === "loading") {
    Object.assign(now, { ticket: answer.ticket, words: answer.words, done: answer.done, total: answer.total });
    opening.tell();
    await wait(LOOK_MS);
    if (!isOver()) answer = await get(`api/open/${now.ticket}`);
  }
  if (isOver()) return false;
  opening.now = null;
  if (answer.error) opening.problem = { source, ...answer.error };
  else session.use(answer.model);
  opening.tell();
  return !answer.error;
}

export function stop() {
  turn++;
  const { now } = opening;
  opening.now = null;
  if (now?.ticket) post(`api/open/${now.ticket}/cancel`);
  opening.tell();
}
