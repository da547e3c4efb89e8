import assert from "node:assert/strict";
import test from "node:test";

import { facts } from "../../web/js/card.js";
import { lines } from "../../web/js/findings.js";

const skull = { label: "Skull", gate: 0.98, threshold: 0.3, strength: 1 };

test("what fired, for which prompt of the batch", () => {
  assert.deepEqual(lines([]), []);
  assert.deepEqual(lines([[]]).map(({ text }) => text), ["clean prompt: guidance untouched"]);
  assert.deepEqual(lines([[skull], []]).map(({ text }) => text), ["Prompt 1: Skull 98 %", "Prompt 2: clean prompt: guidance untouched"]);
});

test("a concept that is switched off is not a clean prompt", () => {
  const [line] = lines([[{ ...skull, strength: 0 }]]);
  assert.equal(line.text, "Skull 98 %, switched off");
  assert.ok(line.off);
});

test("a card says what the file says, and no more", () => {
  const about = { concepts: [{ id: "a", label: "A" }, { id: "b", label: "" }], encoder: "CLIP", probe: false, date: "2026-08-01T12:00:00+00:00" };
  const said = (training) => Object.fromEntries(facts({ ...about, training }));
  assert.equal(said({}).concepts, "A, b");
  assert.equal(said({ data: { pairs: { a: 10, b: 20 }, clean: 5 }, steps: 7 })["trained on"], "30 pairs, 5 clean prompts, 7 steps");
  assert.equal(said({ merged: [{}, {}] })["trained on"], "2 HGRs, merged");
  for (const training of [null, {}, [], "x", { data: 3 }, { data: { pairs: "many" }, steps: "x" }]) {
    assert.equal(said(training)["trained on"], "unknown");
  }
});
