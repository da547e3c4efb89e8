// The editor extension: concept rows on every SafeCFG node with a `concepts` input, a card on HGR Loader, the verdict on Harmfulness
// Detector. The graph holds plain strings, so that it runs the same where this script is not.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { makeCard, CARD_HEIGHT } from "./card.js";
import { stored } from "./concepts.js";
import { addStyle } from "./dom.js";
import { makeReport } from "./report.js";
import { Rows } from "./rows.js";
import { graphs, hgrsOf, widgetValue } from "./upstream.js";

const ROWS = "SAFECFG_CONCEPTS";
const CARD = "SAFECFG_CARD";
const REPORT = "SAFECFG_REPORT";
const LOOK = 400; // ms

const abouts = new Map(); // by name, as promises
let generation = 0; // of these
// What the last run found, by graph and node: it outlives a node that undo makes again.
const fired = new Map();
const reports = new Map();

const key = (node) => `${node.graph?.id} ${node.id}`;

/** What the server says of the HGR of this name: {concepts, ...}, or {error}. */
function about(name) {
  if (!abouts.has(name)) {
    abouts.set(name, api.fetchApi(`/safecfg/hgr/${encodeURIComponent(name)}`).then((answer) => answer.json())
      .catch((error) => ({ error: `Could not get HGR "${name}" from the server (${error.message}).` })));
  }
  return abouts.get(name);
}

/** A DOM widget on the node whose `look` is called now and then. */
function addWidget(node, name, type, element, options, look) {
  const widget = node.addDOMWidget(name, type, element, { hideOnZoom: false, ...options });
  widget.safecfgLook = look;
  letThrough(element);
  return widget;
}

function conceptsWidget(node, name, [, options]) {
  const rows = new Rows({
    strengths: node.comfyClass !== "SafeCFGDetector",
    change: () => widget.callback?.(rows.text),
    done: () => { // one step to undo
      app.canvas.emitBeforeChange();
      app.canvas.emitAfterChange();
    },
  });
  let seen, drawn;
  const look = async () => {
    if (drawn !== fired.get(key(node))) {
      drawn = fired.get(key(node));
      rows.showFired(drawn ?? []);
      node.setDirtyCanvas(true, true);
    }
    const { names, known } = hgrsOf(node);
    const wired = node.inputs.find((input) => input.name === "hgr")?.link != null;
    const locked = node.inputs.find((input) => input.widget?.name === name)?.link != null;
    const state = JSON.stringify([names, known, wired, locked, generation]);
    if (state === seen) return;
    seen = state;
    const answers = await Promise.all(names.map(about));
    if (state !== seen) return; // something else was wired in meanwhile
    const errors = answers.flatMap(({ error }) => error ?? []);
    const concepts = answers.flatMap(({ concepts }) => concepts ?? []);
    let note = "";
    if (locked) note = "The node wired into concepts sets them.";
    else if (errors.length) note = `${errors.join(" ")} Stored strengths are kept.`;
    else if (!wired || (known && !names.length)) note = "Wire in an HGR to see its concepts. Stored strengths are kept.";
    else if (!known) note = "Not known before the graph runs, since it makes this HGR. Stored strengths are kept.";
    const ids = new Set(concepts.map(({ id }) => id));
    const kept = note ? stored(rows.text).filter(({ id }) => !ids.has(id)) : [];
    rows.show([...concepts, ...kept], note, locked);
    node.setDirtyCanvas(true, true);
  };
  const widget = addWidget(node, name, ROWS, rows.element, {
    getValue: () => rows.text,
    setValue: (value) => {
      rows.text = String(value ?? "");
      seen = undefined; // it may speak of other concepts
    },
    getMinHeight: () => rows.height + 20,
  }, look);
  rows.text = options?.default ?? "";
  return { widget, minWidth: 300, minHeight: 1 };
}

function addCard(node) {
  const card = makeCard();
  let seen;
  const look = async () => {
    const name = widgetValue(node, "hgr_name");
    const state = JSON.stringify([name, generation]);
    if (state === seen) return;
    seen = state;
    if (name === undefined) return card.say("The node wired into hgr_name chooses the HGR.");
    const answer = await about(name);
    if (state !== seen) return;
    if (answer.error) card.say(answer.error);
    else card.show(answer);
  };
  const widget = addWidget(node, "about", CARD, card.element, { serialize: false, getMinHeight: () => CARD_HEIGHT + 20 }, look);
  widget.serialize = false;
}

function addReport(node) {
  const report = makeReport();
  let drawn;
  const look = () => {
    if (drawn === reports.get(key(node))) return;
    drawn = reports.get(key(node));
    report.show(drawn);
    node.setDirtyCanvas(true, true);
  };
  const widget = addWidget(node, "verdict", REPORT, report.element, { serialize: false, getMinHeight: () => report.height + 20 }, look);
  widget.serialize = false;
  // The picture of the chart, for where this script is not, would say the same again.
  node.hideOutputImages = true; // Nodes 2.0
  node.onDrawBackground = () => {}; // the classic renderer
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

/** All our widgets, in subgraphs too. */
function widgets() {
  const root = app.rootGraph ?? app.graph;
  return root ? graphs(root).flatMap((graph) => graph.nodes.flatMap((node) => node.widgets ?? [])) : [];
}

/** The node with this execution id, such as 7, or 3:7 for a node 7 in the subgraph of node 3. */
function nodeOf(id) {
  return id.split(":").reduce((graph, part, i, path) => {
    const node = graph?.getNodeById(part);
    return i < path.length - 1 ? node?.subgraph : node;
  }, app.rootGraph ?? app.graph);
}

function forget() {
  abouts.clear();
  generation++;
}

const NAME = "SafeCFG";
// a second copy of the pack brings this script once more: the server says so in its log
if (!app.extensions?.some(({ name }) => name === NAME)) app.registerExtension({
  name: NAME,
  getCustomWidgets: () => ({ [ROWS]: conceptsWidget }),
  beforeRegisterNodeDef(nodeType, nodeData) {
    const spec = nodeData.input?.required?.concepts;
    if (nodeData.category?.startsWith("SafeCFG") && spec?.[0] === "STRING") spec[1] = { ...spec[1], widgetType: ROWS };
  },
  nodeCreated(node) {
    if (node.comfyClass === "SafeCFGHGRLoader") addCard(node);
    if (node.comfyClass === "SafeCFGDetector") addReport(node);
  },
  setup() {
    addStyle(new URL("./safecfg.css", import.meta.url));
    // Nobody says when a node upstream is bypassed, rewired or given another file, so we look.
    setInterval(() => widgets().forEach((widget) => widget.safecfgLook?.()), LOOK);
    api.addEventListener("safecfg.fired", ({ detail: { node, prompts } }) => {
      const found = nodeOf(node);
      if (found) fired.set(key(found), prompts);
    });
    api.addEventListener("executed", ({ detail: { node, display_node, output } }) => {
      const found = nodeOf(display_node ?? node);
      if (found?.comfyClass === "SafeCFGDetector" && output?.report) reports.set(key(found), JSON.parse(output.report[0]));
    });
    for (const end of ["execution_error", "execution_interrupted"]) { // an old verdict must not pass for this run's
      api.addEventListener(end, ({ detail }) => {
        const found = nodeOf(detail.node_id);
        if (found) reports.delete(key(found));
      });
    }
    api.addEventListener("execution_success", forget); // a file may have been saved
  },
  refreshComboInNodes: forget,
});
