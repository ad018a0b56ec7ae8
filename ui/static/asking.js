// Questions of a view to Python: they go as an event, and the answer comes as the view's value.

const LOST_MS = 180_000; // a large model at 4 096 patches takes a minute on two busy cores
const SILENT = { title: "The answer did not come.", text: "Try again." };

// One under way at a time, as one answer would hide another; of those of a kind that wait only the latest. A kind is what
// a question's `ask` says, unless told. Each ends with its answer, null when a later one took its place.
export function questions({ props, trigger, watch }) {
  const waiting = new Map();
  let underWay = null;
  let tickets = 0;
  function next() {
    if (underWay || !waiting.size) return;
    const [kind, one] = waiting.entries().next().value;
    waiting.delete(kind);
    underWay = one;
    one.lost = setTimeout(() => settle({ ticket: one.ticket, error: SILENT }), LOST_MS);
    trigger(one.event, { ...one.question, ticket: one.ticket });
  }
  function settle(answer) {
    if (!underWay || underWay.ticket !== answer.ticket) return;
    const { done, lost } = underWay;
    clearTimeout(lost);
    underWay = null;
    done(answer);
    next();
  }
  watch("value", () => settle(JSON.parse(JSON.stringify(props.value ?? {}))));
  return {
    ask(question, { kind = question.ask, event = "asked" } = {}) {
      waiting.get(kind)?.done(null);
      return new Promise((done) => {
        waiting.set(kind, { event, question, ticket: ++tickets, done });
        next();
      });
    },
  };
}
