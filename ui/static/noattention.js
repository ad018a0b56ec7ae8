// What a view says in place of maps, of a model that has no attention.

import { h, showTab } from "./dom.js";
import { doors } from "./session.js";

export function noAttention() {
  const node = h("div", { class: "blank", hidden: true });
  const button = (words, onclick, kind = "") => h("button", { type: "button", class: `btn${kind}`, onclick }, words);
  return {
    node,
    // the session's facts, or null where there are maps to show
    show(facts) {
      node.hidden = facts === null;
      if (!facts) return;
      const { model } = facts;
      node.replaceChildren(h("p", {}, model.no_attention), h("p", { class: "meta" }, model.can), h("div", { class: "line" },
        model.memory ? button("See its memory", () => showTab("Memory"), " pri") : facts.public ? null : button("Give it a memory", () => doors.remember(), " pri"),
        button("Choose another model", () => doors.models())));
    },
  };
}
