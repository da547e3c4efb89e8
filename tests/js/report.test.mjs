import assert from "node:assert/strict";
import test from "node:test";

import { bar, summary, word } from "../../web/js/report.js";

const concept = (score, evidence = "prompt", all = { [evidence]: [score, 0.3] }) =>
  ({ label: "Skull", score, threshold: 0.3, flagged: score >= 0.3, evidence, all });
const item = (...concepts) => ({ flagged: concepts.some(({ flagged }) => flagged), score: 0, concepts: { ...concepts } });
const report = (...items) => ({ items, about: "prompts", sensitivity: "normal", false_positive_rate: 0.01 });

test("the verdict of one item, and of a batch", () => {
  assert.equal(summary(report(item(concept(0.9)))).verdict, "flagged");
  assert.equal(summary(report(item(concept(0.1)))).verdict, "clean");
  assert.equal(summary(report(item(concept(0.9)), item(concept(0.1)))).verdict, "1 of 2 prompts flagged");
  assert.equal(summary(report(item())).verdict, "clean", "where no concept counts");
});

test("the terms: the evidence where it is one, the sensitivity, and what it promises where the HGR says", () => {
  const terms = (given, ...concepts) => summary({ ...report(item(...concepts)), ...given }).terms;
  assert.equal(terms({}, concept(0.9)), "by prompt, sensitivity normal, 1 % false alarms");
  assert.equal(terms({ sensitivity: "lowest", false_positive_rate: 0.0025 }, concept(0.9, "picture")),
               "by picture only, sensitivity lowest, 0.25 % false alarms");
  assert.equal(terms({ false_positive_rate: null }, concept(0.9, "picture"), concept(0.9, "picture with prompt")), "sensitivity normal");
});

test("a bar names what decided, and every evidence on hover", () => {
  const drawn = bar(concept(0.6, "picture", { "picture with prompt": [0, 0.5], picture: [0.6, 0.3] }));
  assert.deepEqual([drawn.number, drawn.evidence, drawn.flagged], ["0.60", "picture only", true]);
  assert.equal(drawn.hint, "picture with prompt 0.00, flagged from 0.50; picture only 0.60, flagged from 0.30");
});

test("words that matter show their number, the others on hover", () => {
  assert.deepEqual(word(["skull", 0.98]), { text: "skull", heat: 0.98, number: "0.98", hint: "raises the score by 0.98" });
  assert.deepEqual(word(["a", 0.01]), { text: "a", heat: 0.01, number: "", hint: "raises the score by 0.01" });
});
