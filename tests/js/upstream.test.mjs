import assert from "node:assert/strict";
import test from "node:test";

import { hgrsOf, insides, pathOf, widgetValue } from "../../web/js/upstream.js";

/** A graph as litegraph has it, as far as it is looked at: nodes by id, links [id, origin, slot, target, slot]. */
function graph(nodes, links, outputs = []) {
  const made = { nodes: [], outputs, getNodeById: (id) => made.nodes.find((node) => node.id === Number(id)) };
  const found = new Map(links.map(([id, origin_id, origin_slot, target, slot]) =>
    [id, { origin_id, origin_slot, target_id: target, target_slot: slot }]));
  made.getLink = (id) => found.get(id);
  made.rootGraph = made;
  for (const [id, node] of Object.entries(nodes)) {
    const inputs = (node.inputs ?? []).map((input) => ({ type: "HGR", link: null, ...input }));
    made.nodes.push({ mode: 0, ...node, id: Number(id), inputs, graph: made });
  }
  for (const [link, { target_id, target_slot }] of found) {
    const node = made.getNodeById(target_id);
    if (node) node.inputs[target_slot].link = link;
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

test("wires that another pack draws only as the graph is queued", () => {
  const made = graph({ 1: loader("a"), 2: loader("b"), 3: safe }, []);
  const ue = (upstream, downstream, downstream_slot) => ({ upstream, upstream_slot: 0, downstream, downstream_slot });
  made.extra = { ue_links: [ue(2, 3, 0), ue("1", 3, 1)] };
  assert.deepEqual(hgrsOf(made.getNodeById(3)), { names: ["a"], known: true });
  made.extra.ue_links.pop();
  assert.deepEqual(hgrsOf(made.getNodeById(3)), { names: [], known: true });
});

test("a wireless link out of a subgraph", () => {
  const getter = { type: "GetNode", isVirtualNode: true, inputs: [] };
  const inner = graph({ 1: getter, 2: safe }, [[9, 1, 0, 2, 1]]);
  const root = graph({ 1: loader("a"), 2: { type: "uuid", subgraph: inner, inputs: [] } }, []);
  inside(inner, root);
  Object.assign(inner.getNodeById(1), {
    resolveVirtualOutput: (slot) => ({ node: root.getNodeById(1), slot }), getInputLink: () => assert.fail("asked second"),
  });
  assert.deepEqual(hgrsOf(inner.getNodeById(2), [root.getNodeById(2)]), { names: ["a"], known: true });
});

test("an execution id leads through subgraphs", () => {
  const inner = graph({ 7: safe }, []);
  const root = graph({ 3: { type: "uuid", subgraph: inner }, 7: safe }, []);
  assert.deepEqual(pathOf(root, "3:7"), [root.getNodeById(3), inner.getNodeById(7)]);
  assert.deepEqual(pathOf(root, "7"), [root.getNodeById(7)]);
  for (const id of ["4", "4:7", "7:7", "3:8", "3:7:1"]) assert.equal(pathOf(root, id).at(-1), undefined, id);
});

test("what a promoted input leads to, through nested subgraphs", () => {
  const node = { ...safe, inputs: [...safe.inputs, { name: "concepts", type: "STRING" }] };
  const inner = graph({ 1: node }, [[8, -10, 0, 1, 2]]);
  const middle = graph({ 2: { type: "uuid", subgraph: inner, inputs: [{ name: "concepts" }] }, 3: node }, [[9, -10, 0, 2, 0], [10, -10, 0, 3, 2]]);
  inner.inputs = [{ linkIds: [8] }];
  middle.inputs = [{ linkIds: [9, 10] }];
  const outer = { subgraph: middle };
  assert.deepEqual(insides(outer, 0), [[outer, middle.getNodeById(2), inner.getNodeById(1)], [outer, middle.getNodeById(3)]]);
  assert.deepEqual(insides(outer, -1), []);
});

test("a wireless link without an end, which may warn the user, is asked again only when the graph has changed", () => {
  const made = graph({ 1: { type: "GetNode", isVirtualNode: true, widgets: [{ value: "x" }] }, 2: safe, 3: loader("a") }, [[9, 1, 0, 2, 1]]);
  let asked = 0;
  let link;
  made.getNodeById(1).getInputLink = () => (asked++, link);
  for (let i = 0; i < 5; i++) assert.deepEqual(hgrsOf(made.getNodeById(2)), { names: [], known: true });
  assert.equal(asked, 1);
  link = { origin_id: 3, origin_slot: 0 };
  made.nodes.push({ type: "SetNode", id: 4 });
  for (let i = 0; i < 5; i++) assert.deepEqual(hgrsOf(made.getNodeById(2)), { names: ["a"], known: true });
});
