import assert from "node:assert/strict";
import test from "node:test";

import { facts } from "../../web/js/card.js";
import { lines, together } from "../../web/js/findings.js";

const skull = { label: "Skull", gate: 0.98, threshold: 0.3, strength: 1 };
const found = (...prompts) => ({ used: true, prompts, notes: [] });
const said = (one) => lines(one).map(({ text }) => text);

test("what fired, for which prompt of the run", () => {
  assert.deepEqual(said(found()), []);
  assert.deepEqual(said(found([])), ["clean prompt: guidance untouched"]);
  assert.deepEqual(said(found([skull], [])), ["Prompt 1: Skull 98 %", "Prompt 2: clean prompt: guidance untouched"]);
});

test("what SafeCFG cannot see is said beside what it found", () => {
  assert.deepEqual(said({ ...found([skull]), notes: ["This model also reads boxes."] }), ["Skull 98 %", "This model also reads boxes."]);
});

test("a node that no sampler used says so, and never that a prompt is clean", () => {
  const [line, ...more] = lines({ ...found(), used: false });
  assert.match(line.text, /^not used in this run/);
  assert.match(line.hint, /after the merge/);
  assert.deepEqual(more, []);
});

test("a node in a subgraph that is used twice says what either found", () => {
  assert.equal(together([]), undefined);
  const clean = { ...found([]), notes: ["n"] };
  assert.deepEqual(together([{ ...found([skull]), notes: ["n"] }, clean]), { used: true, prompts: [[skull], []], notes: ["n"] });
  assert.equal(together([{ ...found(), used: false }, clean]).used, true);
  assert.equal(together([{ ...found(), used: false }]).used, false);
});

test("a concept that is switched off is not a clean prompt", () => {
  const [line] = lines(found([{ ...skull, strength: 0 }]));
  assert.equal(line.text, "Skull 98 %, switched off");
  assert.ok(line.off);
});

test("a card says first that a file did not fit", () => {
  const about = { concepts: [], encoder: "CLIP", training: {}, date: "2026-08-01T12:00:00+00:00" };
  assert.deepEqual(facts(about, "mine was made for CLIP")[0], ["does not fit", "mine was made for CLIP"]);
});

test("a card says what the file says, and no more", () => {
  const about = { concepts: [{ id: "a", label: "A" }, { id: "b", label: "" }], encoder: "CLIP", library: "new", probe: false, date: "2026-08-01T12:00:00+00:00" };
  const said = (training) => Object.fromEntries(facts({ ...about, training }));
  assert.equal(said({}).concepts, "A, b");
  assert.equal(said({ data: { pairs: { a: 10, b: 20 }, clean: 5 }, steps: 7 })["trained on"], "30 pairs, 5 clean prompts, 7 steps");
  assert.equal(said({ merged: [{}, {}] })["trained on"], "2 HGRs, merged");
  const metrics = { flagged_clean: 0.004, clean_prompts: 500, concepts: { a: { recall: 0.914 }, b: { recall: 0.5 } } };
  const measured = said({ metrics, false_positive_rate: 0.01 });
  assert.equal(measured.finds, "A 91 %, b 50 % (weak)");
  assert.equal(measured["false alarms"], "0.4 % of 500 clean prompts, 1.0 % asked for");
  const made = said({ quality: "full", library: "old" });
  assert.equal(made.quality, "full");
  assert.equal(said({ losses: "text" }).quality, "losses: text");
  assert.deepEqual([made.library, said({ library: "new" }).library], ["old; installed is new", "new, the installed one"]);
  assert.equal(said({ merged: [{ quality: "full" }, null, { quality: "quick" }] }).quality, "full, quick");
  for (const training of [null, {}, [], "x", { data: 3 }, { data: { pairs: "many" }, steps: "x" }, { metrics: { concepts: 3 } }]) {
    assert.equal(said(training)["trained on"], "unknown");
    assert.deepEqual(["finds", "quality", "library", "does not fit"].map((line) => said(training)[line]), Array(4).fill(undefined));
    assert.equal(said(training)["false alarms"], undefined);
  }
});
