// What an HGR file holds, in a few lines below its name.

import { element } from "./dom.js";

export const CARD_HEIGHT = 126;

/** [title, text] of each line. */
export function facts({ concepts, encoder, training, probe, date }) {
  return [
    ["concepts", concepts.map(({ id, label }) => label || id).join(", ")],
    ["for", encoder],
    ["trained on", trainedOn(training)],
    ["detects", probe ? "in prompts and in pictures" : "in prompts"],
    ["file date", new Date(date).toLocaleDateString(undefined, { dateStyle: "medium" })],
  ];
}

/** Files say what they like of their training; what is not said is left out. */
function trainedOn(training) {
  if (Array.isArray(training?.merged)) return `${training.merged.length} HGRs, merged`;
  const pairs = Object.values(training?.data?.pairs ?? {}).filter(Number.isFinite);
  const parts = [
    pairs.length && `${pairs.reduce((a, b) => a + b)} pairs`,
    Number.isFinite(training?.data?.clean) && `${training.data.clean} clean prompts`,
    Number.isFinite(training?.steps) && `${training.steps} steps`,
  ].filter(Boolean);
  return parts.join(", ") || "unknown";
}

export function makeCard() {
  const list = element("dl", { class: "safecfg safecfg-card", "aria-label": "About this HGR", "data-capture-wheel": "true" });
  list.style.minHeight = `${CARD_HEIGHT}px`;
  return {
    element: list,
    show: (about) => list.replaceChildren(...facts(about).flatMap(([title, text]) => [
      element("dt", {}, title), element("dd", { title: text }, text)])),
    say: (text) => list.replaceChildren(element("p", { class: "safecfg-note" }, text)),
  };
}
