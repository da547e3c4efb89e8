// Which HGR files feed a node. Follows wires as the editor does when it queues a prompt: through reroutes, other packs' wireless links,
// bypassed nodes and subgraphs, both into them and out of them.

const NEVER = 2;
const BYPASS = 4;

/** Virtual nodes that lead nowhere, each with what the graph was like: some warn the user each time they are asked. */
const nowhere = new WeakMap();

/** Whether a link comes from outside the subgraph. Ids are numbers in older editors and strings in newer ones. */
export const fromOutside = (link) => Number(link?.origin_id) === -10;

/**
 * The names of the HGR files behind the input `hgr` of a node, and whether that is all: a node that makes an HGR while
 * the graph runs has no name to give. Nothing wired in: no names, and that is all.
 * @param path the subgraph nodes that lead to the node, the outermost first; empty: all.
 */
export function hgrsOf(node, path = []) {
  return collect(node, (input) => input.name === "hgr", path);
}

function collect(node, wanted, path) {
  const found = node.inputs.flatMap((input, i) => (wanted(input) ? feeders(node, i, path) : []));
  const parts = found.map(({ node, path }) => {
    if (node.type === "SafeCFGMergeHGR") return collect(node, (input) => input.name.startsWith("hgr_"), path);
    const name = node.type === "SafeCFGHGRLoader" ? widgetValue(node, "hgr_name", path) : undefined;
    return { names: name === undefined ? [] : [name], known: name !== undefined };
  });
  return { names: [...new Set(parts.flatMap((part) => part.names))], known: parts.every((part) => part.known) };
}

/** The value of a widget, or of what stands in for it outside the subgraph; undefined where it is made while the graph runs. */
export function widgetValue(node, name, path = []) {
  const widget = () => node.widgets?.find((widget) => widget.name === name)?.value;
  const index = node.inputs?.findIndex((input) => input.widget?.name === name) ?? -1;
  const link = index < 0 ? undefined : node.graph.getLink(node.inputs[index].link);
  if (!link) return widget();
  if (fromOutside(link)) {
    const [outer] = outsides(node, path);
    const slot = outer?.inputs[link.origin_slot];
    return slot && widgetValue(outer, slot.widget?.name ?? slot.name, path.slice(0, -1));
  }
  const origin = node.graph.getNodeById(link.origin_id);
  return origin?.type === "PrimitiveNode" ? origin.widgets?.[0]?.value : undefined;
}

/**
 * The nodes that feed an input, each with the path of subgraph nodes that leads into it. Several where the node lies in a
 * subgraph that is used several times.
 */
function feeders(node, index, path) {
  const input = node.inputs[index];
  const link = node.graph.getLink(input.link);
  if (link) return behind(node, link, input.type, path);
  const everywhere = node.graph.extra?.ue_links?.find((one) => // the pack Use Everywhere wires its links in as the graph is queued
    String(one.downstream) === String(node.id) && one.downstream_slot === index);
  return everywhere ? makers(node.graph.getNodeById(everywhere.upstream), everywhere.upstream_slot, input.type, path) : [];
}

function behind(node, link, type, path) {
  if (!link) return [];
  if (fromOutside(link)) {
    return outsides(node, path).flatMap((outer) => feeders(outer, link.origin_slot, path.slice(0, -1)));
  }
  return makers(node.graph.getNodeById(link.origin_id), link.origin_slot, type, path);
}

/** The subgraph nodes whose inside this node lies in. */
export function outsides(node, path = []) {
  if (path.length) return [path.at(-1)];
  const root = node.graph.rootGraph;
  return graphs(root).flatMap((graph) => graph.nodes.filter((outer) => outer.subgraph === node.graph));
}

export function graphs(root) {
  return [root, ...(root.subgraphs?.values() ?? [])];
}

/** The nodes from the outermost to the one with this execution id, such as 7, or 3:7 for a node 7 in the subgraph of node 3. */
export function pathOf(root, id) {
  const path = [];
  for (const part of String(id).split(":")) path.push((path.length ? path.at(-1)?.subgraph : root)?.getNodeById(part));
  return path;
}

/** The nodes inside that an input of a subgraph node leads to, each as the path to it. */
export function insides(outer, slot) {
  const { subgraph } = outer;
  return (subgraph.inputs[slot]?.linkIds ?? []).map((id) => subgraph.getLink(id)).filter(Boolean).flatMap((link) => {
    const inner = subgraph.getNodeById(link.target_id);
    if (!inner) return [];
    return (inner.subgraph ? insides(inner, link.target_slot) : [[inner]]).map((path) => [outer, ...path]);
  });
}

/** What really makes this output. */
function makers(node, slot, type, path) {
  if (!node || node.mode === NEVER) return [];
  if (node.mode === BYPASS) {
    const index = node.inputs.findIndex((input) => input.type === type);
    return index < 0 ? [] : feeders(node, index, path);
  }
  if (node.subgraph) {
    const link = node.subgraph.getLink(node.subgraph.outputs[slot]?.linkIds?.[0]);
    if (fromOutside(link)) return feeders(node, link.origin_slot, path);
    return link ? makers(node.subgraph.getNodeById(link.origin_id), link.origin_slot, type, [...path, node]) : [];
  }
  if (node.isVirtualNode) return beyond(node, slot, type, path);
  return [{ node, path }];
}

/** What makes the output of a virtual node: a reroute, or a pack's own wireless link, perhaps out of a subgraph. */
function beyond(node, slot, type, path) {
  const wires = graphs(node.graph.rootGraph).map(({ nodes, links }) => [nodes.length, links?.size]);
  const state = JSON.stringify([wires, node.widgets?.map(({ value }) => value)]);
  if (nowhere.get(node) === state) return [];
  const far = node.resolveVirtualOutput?.(slot);
  if (far) return makers(far.node, far.slot, type, path.slice(0, path.findLastIndex(({ subgraph }) => subgraph === far.node.graph) + 1));
  const link = node.getInputLink(slot);
  if (!link) nowhere.set(node, state);
  return behind(node, link, type, path);
}
