import assert from "node:assert/strict";
import test from "node:test";

import { parse, stored, strengthOf, withStrength } from "../../web/js/concepts.js";

test("a missing id is on at 1, and an empty text means all on", () => {
  assert.equal(strengthOf("", "skull"), 1);
  assert.equal(strengthOf('{"skull": 0, "bomb": 0.5}', "skull"), 0);
  assert.equal(strengthOf('{"skull": 0, "bomb": 0.5}', "bomb"), 0.5);
  assert.equal(strengthOf('{"skull": 0}', "dagger"), 1);
  assert.equal(strengthOf('{"skull": false, "bomb": true}', "skull"), 0);
  assert.equal(strengthOf('{" Skull": 0}', "skull"), 0, "as the nodes read it");
  assert.equal(strengthOf('{"Skull": 0, "skull": 2}', "skull"), 2);
});

test("setting some ids keeps the others, those of another HGR too", () => {
  assert.deepEqual(JSON.parse(withStrength('{"violence": 0.3, "skull": 1}', ["skull", "bomb"], 0)), { violence: 0.3, skull: 0, bomb: 0 });
  assert.equal(withStrength("", ["skull"], 0), '{"skull":0}');
  assert.equal(withStrength('{"Skull": 0}', ["skull"], 2), '{"skull":2}', "one key for one concept");
});

test("text that is no object of strengths is told apart, counts as all on, and is replaced by the first change", () => {
  for (const text of ["{skull: 0}", "[1]", "1", "null", '"skull"', '{"skull": 3}', '{"skull": -1}', '{"skull": "1"}', '{"skull": null}']) {
    assert.equal(parse(text), undefined, text);
    assert.equal(strengthOf(text, "skull"), 1, text);
    assert.equal(withStrength(text, ["bomb"], 0), '{"bomb":0}', text);
  }
});

test("an id may be any text", () => {
  for (const id of ["__proto__", "constructor", "toString", "", "7", "<img src=x>", 'a"b']) {
    assert.equal(strengthOf("", id), 1, id);
    assert.equal(strengthOf(withStrength('{"skull":0}', [id], 0.25), id), 0.25, id);
    assert.equal(strengthOf(withStrength('{"skull":0}', [id], 0.25), "skull"), 0, id);
  }
});

test("stored ids stand in for concepts", () => {
  assert.deepEqual(stored('{"skull": 0}'), [{ id: "skull", label: "skull", description: "" }]);
  assert.deepEqual(stored("{"), []);
});
