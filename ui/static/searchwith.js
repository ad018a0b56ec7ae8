// "Search with this" beside a memory: the tab Search, with its slot as the query.

import { h, showTab } from "./dom.js";
import { doors } from "./session.js";

export function searchWith({ slot, space, name, thumb }) {
  return h("button", { type: "button", class: "btn small", onclick: () => { showTab("Search"); ask(); } }, "Search with this");

  function ask() {
    if (doors.search) doors.search({ slot, space, name, thumb });
    else requestAnimationFrame(ask); // the tab has not been on screen before
  }
}
