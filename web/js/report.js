// What Harmfulness Detector found, drawn on its node: the verdict, a bar for each concept, and the words by how much they matter.
// The report's form is described in docs/detection.md.

import { element } from "./dom.js";

const EMPTY = 34;
const FULL = 190; // more is scrolled to
const LOUD = 0.1; // words from here on show their number
const EVIDENCE = { picture: "picture only" };

const number = (x) => x.toFixed(2);
const evidenceName = (kind) => EVIDENCE[kind] ?? kind;

/** What is said of the whole batch: the verdict, and on which terms. */
export function summary({ items, about, sensitivity, false_positive_rate: rate }) {
  const flagged = items.filter((item) => item.flagged).length;
  const kinds = kindsOf(items);
  return {
    verdict: items.length === 1 ? verdict(items[0]) : `${flagged} of ${items.length} ${about} flagged`,
    terms: [
      kinds.length === 1 && `by ${evidenceName(kinds[0])}`,
      `sensitivity ${sensitivity}`,
      rate !== null && `${Number((100 * rate).toFixed(2))} % false alarms`,
    ].filter(Boolean).join(", "),
  };
}

/** What one bar says: of several kinds of evidence it shows the one that decided. */
export function bar({ label, score, threshold, flagged, evidence, all }) {
  const seen = Object.entries(all).map(([kind, [score, limit]]) =>
    `${evidenceName(kind)} ${number(score)}, flagged from ${number(limit)}`);
  return { label, score, threshold, flagged, number: number(score), evidence: evidenceName(evidence), hint: seen.join("; ") };
}

/** A word and, where it matters, its number. */
export function word([text, heat]) {
  return { text, heat, number: heat >= LOUD ? number(heat) : "", hint: `raises the score by ${number(heat)}` };
}

const verdict = ({ flagged }) => (flagged ? "flagged" : "clean");

/** The kinds of evidence that decided. */
const kindsOf = (items) => [...new Set(items.flatMap(({ concepts }) => Object.values(concepts).map(({ evidence }) => evidence)))];

/** `show(report)` draws one, or none if it is undefined. */
export function makeReport() {
  const list = element("div", {
    class: "safecfg-report", role: "region", "aria-label": "What was detected", tabindex: 0, "data-capture-wheel": "true",
  });
  const box = element("div", { class: "safecfg" }, list);
  let height;
  const show = (report) => {
    height = report ? FULL : EMPTY;
    box.style.minHeight = `${height}px`;
    const empty = () => [element("p", { class: "safecfg-note" }, "Run the graph to see the verdict here.")];
    list.replaceChildren(...(report ? draw(report) : empty()));
  };
  show();
  return { element: box, show, get height() { return height; } };
}

function draw(report) {
  const { items, flagged, about } = report;
  const { verdict: text, terms } = summary(report);
  const several = kindsOf(items).length > 1;
  const drawn = [element("div", { class: "safecfg-verdict", role: "status" }, chip(flagged, text), element("span", {}, terms))];
  const [{ words } = {}] = items; // those of the node's one text
  if (words?.length) drawn.push(element("p", { class: "safecfg-words" }, ...words.flatMap((one) => [drawWord(word(one)), " "])));
  if (items.length === 1) drawn.push(table(items[0], several));
  else drawn.push(...items.map((item, i) => drawItem(item, `${about === "prompts" ? "Prompt" : "Picture"} ${i + 1}`, several)));
  return drawn;
}

function drawItem(item, title, several) {
  const head = element("summary", {}, chip(item.flagged, verdict(item)), ` ${title} `, element("b", {}, number(item.score)));
  const made = element("details", {}, head, table(item, several));
  made.open = item.flagged;
  return made;
}

const chip = (flagged, text) => element("span", { class: flagged ? "safecfg-chip safecfg-bad" : "safecfg-chip" }, text);

function table(item, several) {
  const rows = Object.values(item.concepts).map((concept) => row(bar(concept), several));
  return element("table", { "aria-label": "Score of each concept" }, ...rows);
}

function row({ label, score, threshold, flagged, number, evidence, hint }, several) {
  const meter = element("div", {
    class: "safecfg-bar", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": score,
    "aria-valuetext": hint,
  }, element("i"), element("b"));
  meter.children[0].style.width = `${100 * score}%`;
  meter.children[1].style.left = `${100 * threshold}%`;
  return element("tr", { class: flagged ? "safecfg-bad" : "", title: `${label}: ${hint}` },
                 element("th", { scope: "row" }, label), element("td", {}, meter), element("td", {}, number),
                 ...(several ? [element("td", {}, evidence)] : []));
}

function drawWord({ text, heat, number, hint }) {
  const drawn = element("span", { class: "safecfg-word", title: hint }, text);
  drawn.style.setProperty("--heat", `${80 * heat}%`);
  if (number) drawn.append("\u00a0", element("b", {}, number));
  return drawn;
}
