// A dialog in the page's own dress: title, close button, body. Esc and a click beside it close it too.

import { h, icon } from "./dom.js";

export function dialog(id, title, body, { wide = false, onclose = () => {} } = {}) {
  const heading = h("h2", { id: `${id}-title` }, title);
  const close = h("button", { type: "button", class: "btn quiet icon", "aria-label": "Close", onclick: () => node.close() }, icon("close"));
  const node = h("dialog", { id, class: `dlg ui${wide ? " wide" : ""}`, "aria-labelledby": heading.id },
    h("div", { class: "head" }, heading, close), body);
  let pressed = null;
  node.addEventListener("pointerdown", (event) => { pressed = event.target; }); // not a drag that ends beside it
  node.addEventListener("click", (event) => { if (event.target === node && pressed === node) node.close(); });
  node.addEventListener("close", () => {
    if (document.activeElement === document.body || !document.activeElement) document.querySelector("button.model")?.focus();
    onclose();
  });
  return {
    node,
    set title(text) { heading.textContent = text; },
    get isOpen() { return node.open; },
    show() {
      for (const other of document.querySelectorAll("dialog[open]")) other.close();
      node.showModal();
    },
    close() { node.close(); },
  };
}

// A bar of done / total; without a total it only says that something is going on
export function progressBar(label) {
  const fill = h("i");
  const node = h("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, fill);
  return {
    node,
    show(done, total) {
      const share = total ? Math.min(1, done / total) : null;
      node.classList.toggle("vague", share === null);
      fill.style.width = share === null ? "" : `${100 * share}%`;
      if (share === null) node.removeAttribute("aria-valuenow");
      else node.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    },
  };
}
