// The panels of the tab Memory: one of them is on screen.

import { segmented } from "./dom.js";
import { session, writeLink } from "./session.js";

const PANELS = { neighbours: "Neighbours", map: "Map" };

export function mount({ element }) {
  const named = session.link.get("tab") === "memory" ? session.link.get("panel") : null;
  const choice = segmented("Panel", Object.entries(PANELS), "neighbours", show);
  element.append(choice.node);
  show(named in PANELS ? named : "neighbours");

  function show(name) {
    choice.press(name);
    for (const panel of Object.keys(PANELS)) {
      const node = document.getElementById(panel);
      if (!node) { requestAnimationFrame(() => show(name)); return; } // not yet mounted
      node.hidden = panel !== name;
      node.dataset.placed = "";
    }
    if (element.offsetParent !== null) writeLink({ tab: "memory", panel: name === "neighbours" ? null : name });
    session.tell();
  }
}
