// Widgets made of elements, in both renderers.

import { app } from "../../../scripts/app.js";

/** A DOM widget on the node whose `look` is called now and then. */
export function addWidget(node, name, type, element, options, look) {
  const widget = node.addDOMWidget(name, type, element, { hideOnZoom: false, selectOn: [], ...options });
  if (options.serialize === false) widget.serialize = false;
  widget.safecfgLook = look;
  for (const event of ["focus", "click"]) element.addEventListener(event, () => select(node));
  letThrough(element);
  return widget;
}

/** Draw the node again, twice: the first drawing may make it grow, and only the next one shows it grown. */
export function redraw(node) {
  node.setDirtyCanvas(true, true);
  requestAnimationFrame(() => requestAnimationFrame(() => node.setDirtyCanvas(true, true)));
}

/** As the host does on `selectOn`, but not a node in another graph, behind which an older editor hides what it promotes. */
function select(node) {
  if (window.LiteGraph?.vueNodesMode || node.graph !== app.canvas.graph) return;
  app.canvas.selectNode(node);
  app.canvas.bringToFront(node);
}

/** Wheel, middle mouse button and undo are the canvas's, unless there is something to scroll. */
function letThrough(element) {
  element.addEventListener("wheel", (event) => {
    if (window.LiteGraph?.vueNodesMode) return; // there the node passes them on itself
    const box = event.target.closest("[data-capture-wheel]");
    const room = box && (event.deltaY < 0 ? box.scrollTop > 0 : box.scrollTop + box.clientHeight < box.scrollHeight - 1);
    if (room && !event.ctrlKey) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  }, { passive: false });
  for (const [name, pass] of [["pointerdown", "processMouseDown"], ["pointermove", "processMouseMove"], ["pointerup", "processMouseUp"]]) {
    element.addEventListener(name, (event) => {
      if (event.button === 1 || event.buttons & 4) app.canvas[pass](event);
    });
  }
  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey) {
      // The editor leaves undo to the text in an input. A slider has none.
      const key = event.key.toLowerCase();
      const command = key === "y" || (key === "z" && event.shiftKey) ? "Comfy.Redo" : key === "z" ? "Comfy.Undo" : undefined;
      if (!command || event.target.tagName !== "INPUT") return;
      event.preventDefault();
      event.stopPropagation();
      app.extensionManager.command.execute(command);
    } else if (/^(Arrow|Page|Home|End|Enter| )/.test(event.key)) {
      event.stopPropagation(); // not a shortcut
    }
  });
}
