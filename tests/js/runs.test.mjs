import assert from "node:assert/strict";
import test from "node:test";

import { Runs } from "../../web/js/runs.js";

const all = () => true;
const fired = (runs, workflow) => runs.last(workflow, "fired", all).map(({ found }) => found);
const say = (runs, prompt, found, more = {}) => runs.said(prompt, "fired", "7", { found, ...more });

test("what a run says belongs to the workflow that queued it, whichever is open as it runs", () => {
  const [one, other, runs] = [{}, {}, new Runs()];
  runs.queued("p", one);
  runs.queued("q", other);
  runs.started("p");
  say(runs, "p", "skull");
  assert.deepEqual([fired(runs, one), fired(runs, other)], [["skull"], []]);
  runs.started("q");
  say(runs, "q", "clean");
  assert.deepEqual([fired(runs, one), fired(runs, other)], [["skull"], ["clean"]]);
});

test("a run that no open workflow queued is shown nowhere", () => {
  const runs = new Runs();
  runs.started("p");
  say(runs, "p", "skull");
  assert.deepEqual([fired(runs, {}), fired(runs, undefined)], [[], []]);
  runs.queued("p", undefined);
  assert.deepEqual(fired(runs, undefined), []);
});

test("a run may speak before the server has answered to queueing it", () => {
  const [one, runs] = [{}, new Runs()];
  runs.started("p");
  say(runs, "p", "skull");
  runs.queued("p", one);
  assert.deepEqual(fired(runs, one), ["skull"]);
});

test("a new run clears the last one, and one that is still waiting does not", () => {
  const [one, runs] = [{}, new Runs()];
  for (const prompt of ["p", "q"]) runs.queued(prompt, one);
  runs.started("q"); // put in front of the queue
  say(runs, "q", "clean");
  assert.deepEqual(fired(runs, one), ["clean"]);
  runs.started("p");
  assert.deepEqual(fired(runs, one), []);
  say(runs, "q", "late");
  assert.deepEqual(fired(runs, one), []);
});

test("each event of a run replaces what it said of that node before", () => {
  const [one, runs] = [{}, new Runs()];
  runs.queued("p", one);
  say(runs, "p", "skull");
  say(runs, "p", "skull and clean");
  runs.said("p", "fired", "8", { found: "other node" });
  assert.deepEqual(fired(runs, one), ["skull and clean", "other node"]);
  assert.deepEqual(runs.last(one, "fired", (id) => id === "8"), [{ found: "other node" }]);
  assert.deepEqual(runs.last(one, "reports", all), []);
});

test("concepts are kept until a run knows others", () => {
  const [one, runs] = [{}, new Runs()];
  for (const prompt of ["p", "q", "r"]) runs.queued(prompt, one);
  assert.equal(runs.concepts(one, all), undefined);
  say(runs, "p", "skull", { concepts: ["a"] });
  runs.started("q");
  say(runs, "q", "unused", { concepts: [] });
  assert.deepEqual(runs.concepts(one, all), ["a"]);
  say(runs, "r", "skull", { concepts: ["b"] });
  assert.deepEqual(runs.concepts(one, all), ["b"]);
  assert.equal(runs.concepts(one, () => false), undefined);
  assert.equal(runs.concepts({}, all), undefined);
});

test("a workflow into which another graph was loaded has nothing to show, even from a run that goes on", () => {
  const [one, other, runs] = [{}, {}, new Runs()];
  runs.queued("p", one);
  runs.queued("q", other);
  for (const prompt of ["p", "q"]) say(runs, prompt, "skull", { concepts: ["a"] });
  runs.forget(one);
  say(runs, "p", "late");
  assert.deepEqual([fired(runs, one), runs.concepts(one, all), fired(runs, other)], [[], undefined, ["skull"]]);
});

test("the oldest runs are forgotten, so that a long session does not grow", () => {
  const [one, runs] = [{}, new Runs()];
  runs.queued("first", one);
  runs.said("first", "fired", "8", { concepts: ["a"] });
  for (let i = 0; i < 1000; i++) {
    runs.queued(`p${i}`, one);
    say(runs, `p${i}`, i);
  }
  assert.deepEqual(fired(runs, one), [999]);
  assert.equal(runs.concepts(one, (id) => id === "8"), undefined);
});
