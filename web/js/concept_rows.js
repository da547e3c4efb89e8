// Concept rows on a node: on every SafeCFG node with a `concepts` input, and on a subgraph node to which such an input is promoted.

import { app } from "../../../scripts/app.js";
import { about, generation } from "./abouts.js";
import { stored } from "./concepts.js";
import { together } from "./findings.js";
import { Rows } from "./rows.js";
import { fromOutside, hgrsOf, insides, outsides } from "./upstream.js";
import { lastConcepts, misfit, said } from "./verdicts.js";
import { addWidget, redraw } from "./widgets.js";

export const ROWS = "SAFECFG_CONCEPTS";
const PROMOTED = "SAFECFG_PROMOTED_CONCEPTS";
const WIDTH = 300;

/** The widget of a `concepts` input. */
export function conceptsWidget(node, name, [, options]) {
  const rows = makeRows(node.comfyClass !== "SafeCFGDetector", () => widget.callback?.(rows.text));
  const slot = () => node.inputs.findIndex((input) => input.widget?.name === name);
  const { look, again } = looking(node, rows, () => [[node]], () => setBy(node, slot(), rows.element));
  const widget = addWidget(node, name, ROWS, rows.element, {
    getValue: () => rows.text,
    setValue: (value) => {
      rows.text = String(value ?? "");
      again(); // it may speak of other concepts
    },
    getMinHeight: () => rows.height + 20,
  }, look);
  rows.text = options?.default ?? "";
  return { widget, minWidth: WIDTH, minHeight: 1 };
}

/**
 * Rows for each `concepts` that is promoted to this subgraph node, where the editor has room for its value but nothing to show.
 * The value stays the promoted widget's; older editors show the rows themselves there, and need none.
 */
export function showPromoted(outer) {
  const bare = outer.widgets.filter((widget) => widget.type === ROWS && !widget.element);
  const shown = outer.widgets.filter((widget) => widget.type === PROMOTED);
  for (const widget of shown) if (!bare.includes(widget.safecfgOf)) outer.removeWidget(widget);
  for (const widget of bare) {
    if (!shown.some(({ safecfgOf }) => safecfgOf === widget)) addPromoted(outer, widget);
  }
}

function addPromoted(outer, promoted) {
  const slot = () => outer.inputs.findIndex((input) => input.widget?.name === promoted.name);
  const paths = () => insides(outer, slot());
  const rows = makeRows(paths().some((path) => path.at(-1).comfyClass !== "SafeCFGDetector"), (text) => {
    promoted.value = text;
  });
  const whoSets = () => setBy(outer, slot(), rows.element);
  const { look, again } = looking(outer, rows, paths, whoSets);
  const widget = addWidget(outer, `${promoted.name} rows`, PROMOTED, rows.element, {
    serialize: false, getMinHeight: () => rows.height + 20,
  }, () => {
    promoted.hidden = promoted.options.hidden = !whoSets(); // in the classic renderer, in Nodes 2.0; a wire needs its end
    const text = String(promoted.value ?? "");
    if (text !== rows.text) {
      rows.text = text;
      again();
    }
    return look();
  });
  widget.safecfgOf = promoted;
  const [width, height] = outer.computeSize();
  outer.setSize([Math.max(outer.size[0], width, WIDTH), Math.max(outer.size[1], height)]);
}

function makeRows(strengths, change) {
  return new Rows({
    strengths, change,
    done: () => { // one step to undo
      app.canvas.emitBeforeChange();
      app.canvas.emitAfterChange();
    },
  });
}

/** Who sets a value instead of these rows, in words; empty: they do. */
function setBy(node, slot, element) {
  const link = node.graph.getLink(node.inputs[slot]?.link);
  if (!link) return "";
  if (!fromOutside(link)) return "The node wired into concepts sets them.";
  const shared = outsides(node).filter(({ widgets }) => widgets?.some((widget) => widget.element === element)); // older editors
  if (!shared.length) return "The subgraph node sets them.";
  return shared.map((outer) => setBy(outer, link.origin_slot, element)).find(Boolean) ?? "";
}

/**
 * A function that brings the rows on a node up to date with the wires and the last run, and one that makes it start over.
 * @param paths gives the paths to the SafeCFG nodes whose concepts these are.
 * @param whoSets says who sets the value instead of the rows.
 */
function looking(node, rows, paths, whoSets) {
  let seen, drawn = "";
  const look = async () => {
    const here = paths();
    const found = together(said(here, "fired"));
    const text = JSON.stringify(found ?? "");
    if (text !== drawn) {
      drawn = text;
      rows.showFired(found);
      redraw(node);
    }
    const hgrs = here.map((path) => hgrsOf(path.at(-1), path.slice(0, -1)));
    const names = [...new Set(hgrs.flatMap(({ names }) => names))];
    const known = hgrs.every(({ known }) => known);
    const last = known && names.length ? undefined : lastConcepts(here);
    const misfits = names.map(misfit).filter(Boolean);
    const setter = whoSets();
    const state = JSON.stringify([names, known, last, misfits, setter, generation()]);
    if (state === seen) return;
    seen = state;
    const answers = await Promise.all(names.map(about));
    if (state !== seen) return; // something else was wired in meanwhile
    if (setter) rows.show([], setter);
    else rows.show(...choose(answers, { known, last, misfits, text: rows.text }));
    redraw(node);
  };
  return { look, again: () => { seen = undefined; } };
}

/** The concepts to show and a note: those of the wires, then what the last run said, then what is stored. */
function choose(answers, { known, last, misfits, text }) {
  const errors = [...misfits, ...answers.flatMap(({ error }) => error ?? [])];
  let note = "";
  if (errors.length) note = `${errors.join(" ")} Stored strengths are kept.`;
  else if (last) note = "Concepts of the last run: the wires do not lead to an HGR file.";
  else if (!known) note = "Not known before the graph runs. Stored strengths are kept.";
  else if (!answers.length) note = "Wire in an HGR to see its concepts. Stored strengths are kept.";
  const found = answers.flatMap(({ concepts }) => concepts ?? []);
  for (const concept of last ?? (note ? stored(text) : [])) {
    if (!found.some(({ id }) => id === concept.id)) found.push(concept);
  }
  return [found, note];
}
