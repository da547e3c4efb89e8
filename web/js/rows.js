// The rows of a `concepts` input: a switch and a strength for each concept, and what the last run found.

import { MAX, parse, strengthOf, withStrength } from "./concepts.js";
import { element } from "./dom.js";
import { lines } from "./findings.js";

const HEAD = 26;
const ROW = 24;
const NOTE = 34;
const LINE = 18;
const SHOWN = { rows: 5, lines: 6 }; // more are scrolled to
const LETTERS = 46; // in a line, about

/**
 * @param strengths whether a concept has a strength, or is only on or off.
 * @param change called with the new text on every change of the user's.
 * @param done called when a change is complete, as when a slider is let go.
 */
export class Rows {
  #text = "";
  #concepts = [];
  #sync = []; // of each row, what shows the text's strength
  #last = new Map(); // strengths before they were switched off
  #note = "";
  #fired = [];

  constructor({ strengths, change, done }) {
    this.strengths = strengths;
    this.edit = (ids, strength) => {
      this.text = withStrength(this.#text, ids, strength);
      change(this.#text);
    };
    this.done = done;
    const all = (text, strength) => element("button", {
      type: "button", onclick: () => { this.edit(this.#concepts.map(({ id }) => id), strength); done(); },
    }, text);
    this.head = element("div", { class: "safecfg-head" }, element("span", {}, "concepts"), all("all on", 1), all("all off", 0));
    this.noteBox = element("p", { class: "safecfg-note", role: "status" });
    this.list = element("div", { class: "safecfg-rows", "data-capture-wheel": "true" });
    this.chart = element("div", { class: "safecfg-fired", role: "status", "aria-label": "What the last run found",
                                  "data-capture-wheel": "true" });
    this.element = element("div", { class: "safecfg", role: "group", "aria-label": "Concepts" },
                           this.head, this.noteBox, this.list, this.chart);
    this.#draw();
  }

  get text() {
    return this.#text;
  }

  set text(text) {
    this.#text = text;
    for (const sync of this.#sync) sync();
    this.#drawNote();
  }

  /** Show these concepts, and a note above them. */
  show(concepts, note = "") {
    this.#note = note;
    if (JSON.stringify(concepts) === JSON.stringify(this.#concepts)) return this.#drawNote(); // the focus stays where it is
    this.#concepts = concepts;
    this.#draw();
  }

  /** found: what the last run said; undefined if nothing. */
  showFired(found) {
    this.#fired = found ? lines(found) : [];
    this.chart.replaceChildren(...this.#fired.map(line));
    this.#fit();
  }

  get height() {
    return 8 + HEAD + (this.noteBox.hidden ? 0 : NOTE) + ROW * Math.min(this.#concepts.length, SHOWN.rows)
      + (this.#fired.length ? 5 + LINE * Math.min(this.#fired.reduce((sum, line) => sum + height(line), 0), SHOWN.lines) : 0);
  }

  #draw() {
    this.#sync = [];
    this.list.replaceChildren(...this.#concepts.map((concept) => this.#row(concept)));
    for (const button of this.head.querySelectorAll("button")) button.disabled = !this.#concepts.length;
    this.text = this.#text;
  }

  #drawNote() {
    const bad = !parse(this.#text) && "The stored text is not a JSON object of strengths from 0 to 2. The first change replaces it.";
    this.noteBox.textContent = bad || this.#note;
    this.noteBox.hidden = !this.noteBox.textContent;
    this.#fit();
  }

  #fit() {
    this.chart.hidden = !this.#fired.length;
    this.chart.style.maxHeight = `${LINE * SHOWN.lines}px`;
    this.element.style.minHeight = `${this.height}px`;
  }

  #row({ id, label, description }) {
    const toggle = element("button", {
      type: "button", role: "switch", class: "safecfg-switch",
      onclick: () => {
        const strength = strengthOf(this.#text, id);
        if (strength) this.#last.set(id, strength);
        this.edit([id], strength ? 0 : this.strengths ? this.#last.get(id) ?? 1 : 1);
        this.done();
      },
    }, element("i"), element("span", {}, label || id));
    const row = element("div", { class: "safecfg-row", title: description || label || id }, toggle);
    let slide = () => {};
    if (this.strengths) {
      const slider = element("input", {
        type: "range", min: 0, max: MAX, step: 0.05, "aria-label": `strength of ${label || id}`,
        oninput: () => this.edit([id], Number(slider.value)), onchange: this.done,
      });
      const number = element("output");
      slide = (strength) => {
        slider.value = strength;
        number.textContent = strength.toFixed(2);
      };
      row.append(slider, number);
    }
    this.#sync.push(() => {
      const strength = strengthOf(this.#text, id);
      toggle.setAttribute("aria-checked", strength > 0);
      slide(strength);
    });
    return row;
  }
}

/** Lines of text that this one takes. */
const height = ({ text, wrapped }) => (wrapped ? Math.ceil(text.length / LETTERS) : 1);

function line({ text, hint, gate, threshold, off, wrapped }) {
  if (wrapped) return element("p", { class: "safecfg-remark", title: hint ?? "" }, text);
  const drawn = element("div", { class: off ? "safecfg-line safecfg-off" : "safecfg-line" }, element("span", {}, text));
  if (gate === undefined) return drawn;
  const bar = element("div", { class: "safecfg-bar", title: `fires from ${Math.round(100 * threshold)} %` }, element("i"), element("b"));
  bar.children[0].style.width = `${100 * gate}%`;
  bar.children[1].style.left = `${100 * threshold}%`;
  drawn.append(bar);
  return drawn;
}
