import assert from "node:assert/strict";
import test from "node:test";

import { hgrsOf, widgetValue } from "../../web/js/upstream.js";

/** A graph as litegraph has it, as far as it is looked at: nodes by id, links [id, origin, slot, target, slot]. */
function graph(nodes, links, outputs = []) {
  const made = { nodes: [], outputs, getNodeById: (id) => made.nodes.find((node) => node.id === id) };
  const found = new Map(links.map(([id, origin_id, origin_slot, target, slot]) => [id, { origin_id, origin_slot, target, slot }]));
  made.getLink = (id) => found.get(id);
  made.rootGraph = made;
  for (const [id, node] of Object.entries(nodes)) {
    const inputs = (node.inputs ?? []).map((input) => ({ type: "HGR", link: null, ...input }));
    made.nodes.push({ mode: 0, ...node, id: Number(id), inputs, graph: made });
  }
  for (const [link, { target, slot }] of found) {
    const node = made.getNodeById(target);
    if (node) node.inputs[slot].link = link;
  }
  return made;
}

function inside(inner, root) {
  inner.rootGraph = root;
  root.subgraphs = new Map([...(root.subgraphs ?? []), [root.subgraphs?.size ?? 0, inner]]);
}

const loader = (name) => ({
  type: "SafeCFGHGRLoader", widgets: [{ name: "hgr_name", value: name }],
  inputs: [{ name: "hgr_name", type: "COMBO", widget: { name: "hgr_name" } }],
});
const safe = { type: "SafeCFGModel", inputs: [{ name: "model", type: "MODEL" }, { name: "hgr" }] };

test("nothing wired in", () => {
  assert.deepEqual(hgrsOf(graph({ 1: safe }, []).getNodeById(1)), { names: [], known: true });
});

test("a loader, directly, through reroutes and bypassed nodes; a muted one gives nothing", () => {
  const reroute = { type: "Reroute", isVirtualNode: true, inputs: [{ name: "", type: "*" }] };
  const found = (middle) => {
    const made = graph({ 1: loader("a"), 2: { ...middle }, 3: safe }, [[5, 1, 0, 2, 0], [6, 2, 0, 3, 1]]);
    const node = made.getNodeById(2);
    node.getInputLink = () => made.getLink(node.inputs[0].link);
    return hgrsOf(made.getNodeById(3));
  };
  assert.deepEqual(hgrsOf(graph({ 1: loader("a"), 3: safe }, [[5, 1, 0, 3, 1]]).getNodeById(3)), { names: ["a"], known: true });
  assert.deepEqual(found(reroute), { names: ["a"], known: true });
  assert.deepEqual(found({ type: "Any", mode: 4, inputs: [{ name: "x" }] }), { names: ["a"], known: true });
  assert.deepEqual(found({ type: "Any", mode: 4, inputs: [{ name: "x", type: "IMAGE" }] }), { names: [], known: true });
  assert.deepEqual(found({ type: "Any", mode: 2, inputs: [{ name: "x" }] }), { names: [], known: true });
});

test("a node that makes an HGR while the graph runs is not known, nor a name that is computed", () => {
  assert.deepEqual(hgrsOf(graph({ 1: { type: "SafeCFGTrainHGR" }, 3: safe }, [[5, 1, 0, 3, 1]]).getNodeById(3)), { names: [], known: false });
  const computed = graph({ 1: { type: "AnyText" }, 2: loader("a"), 3: safe }, [[4, 1, 0, 2, 0], [5, 2, 0, 3, 1]]);
  assert.deepEqual(hgrsOf(computed.getNodeById(3)), { names: [], known: false });
});

test("a merged HGR has the names of its parts", () => {
  const merge = { type: "SafeCFGMergeHGR", inputs: [{ name: "hgr_1" }, { name: "hgr_2" }, { name: "hgr_3" }] };
  const links = [[5, 1, 0, 3, 0], [6, 2, 0, 3, 1], [7, 3, 0, 4, 1]];
  assert.deepEqual(hgrsOf(graph({ 1: loader("a"), 2: loader("b"), 3: merge, 4: safe }, links).getNodeById(4)), { names: ["a", "b"], known: true });
  const half = graph({ 1: loader("a"), 2: { type: "SafeCFGTrainHGR" }, 3: merge, 4: safe }, links);
  assert.deepEqual(hgrsOf(half.getNodeById(4)), { names: ["a"], known: false });
});

test("a primitive that gives the name", () => {
  const made = graph({ 1: { type: "PrimitiveNode", widgets: [{ value: "p" }] }, 2: loader("a") }, [[4, 1, 0, 2, 0]]);
  assert.equal(widgetValue(made.getNodeById(2), "hgr_name"), "p");
});

test("out of a subgraph, of each of its copies", () => {
  const inner = graph({ 1: safe }, [[9, -10, 0, 1, 1]]);
  const outer = { type: "uuid", subgraph: inner, inputs: [{ name: "hgr" }] };
  const root = graph({ 1: loader("a"), 2: outer, 3: loader("b"), 4: outer, 5: outer }, [[5, 1, 0, 2, 0], [6, 3, 0, 4, 0]]);
  inside(inner, root);
  assert.deepEqual(hgrsOf(inner.getNodeById(1)), { names: ["a", "b"], known: true });
});

test("into a subgraph, whose loader's name is set outside", () => {
  const inner = graph({ 1: loader("inner") }, [[8, "-10", 0, 1, 0]], [{ linkIds: [9] }]);
  const link = inner.getLink;
  inner.getLink = (id) => (id === 9 ? { origin_id: 1, origin_slot: 0 } : link(id));
  const outer = (value) => ({ type: "uuid", subgraph: inner, widgets: [{ name: "hgr_name", value }],
                              inputs: [{ name: "hgr_name", type: "COMBO", widget: { name: "hgr_name" } }] });
  const root = graph({ 2: outer("a"), 3: outer("b"), 4: safe, 5: safe }, [[5, 2, 0, 4, 1], [6, 3, 0, 5, 1]]);
  inside(inner, root);
  assert.deepEqual(hgrsOf(root.getNodeById(4)), { names: ["a"], known: true });
  assert.deepEqual(hgrsOf(root.getNodeById(5)), { names: ["b"], known: true });
});
