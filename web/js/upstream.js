// Which HGR files feed a node. Follows wires as the editor does when it queues a prompt: through reroutes, bypassed nodes and
// subgraphs, both into them and out of them.

const NEVER = 2;
const BYPASS = 4;

/** Whether a link comes from outside the subgraph. Ids are numbers in older editors and strings in newer ones. */
const fromOutside = (link) => Number(link?.origin_id) === -10;

/**
 * The names of the HGR files behind the input `hgr` of a node, and whether that is all: a node that makes an HGR while
 * the graph runs has no name to give. Nothing wired in: no names, and that is all.
 */
export function hgrsOf(node) {
  return collect(node, (input) => input.name === "hgr");
}

function collect(node, wanted, path = []) {
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
  return behind(node, node.graph.getLink(input.link), input.type, path);
}

function behind(node, link, type, path) {
  if (!link) return [];
  if (fromOutside(link)) {
    return outsides(node, path).flatMap((outer) => feeders(outer, link.origin_slot, path.slice(0, -1)));
  }
  return makers(node.graph.getNodeById(link.origin_id), link.origin_slot, type, path);
}

/** The subgraph nodes whose inside this node lies in. */
function outsides(node, path) {
  if (path.length) return [path.at(-1)];
  const root = node.graph.rootGraph;
  return graphs(root).flatMap((graph) => graph.nodes.filter((outer) => outer.subgraph === node.graph));
}

export function graphs(root) {
  return [root, ...(root.subgraphs?.values() ?? [])];
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
  if (node.isVirtualNode) return behind(node, node.getInputLink(slot), type, path); // a reroute, or a pack's own wireless link
  return [{ node, path }];
}
