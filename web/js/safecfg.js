// The editor extension: concept rows on every SafeCFG node with a `concepts` input, a card on HGR Loader, the verdict on Harmfulness
// Detector. The graph holds plain strings, so that it runs the same where this script is not.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { about, forget, generation } from "./abouts.js";
import { makeCard, CARD_HEIGHT } from "./card.js";
import { conceptsWidget, ROWS, showPromoted } from "./concept_rows.js";
import { addStyle } from "./dom.js";
import { badge, refusal } from "./policy.js";
import { makeReport } from "./report.js";
import { graphs, widgetValue } from "./upstream.js";
import { graphLoaded, listen, misfit, notice, rootGraph, said } from "./verdicts.js";
import { addWidget, redraw } from "./widgets.js";

const NAME = "SafeCFG";
const CARD = "SAFECFG_CARD";
const REPORT = "SAFECFG_REPORT";
const LOOK = 400, READING = 15000; // ms

function addCard(node) {
  const card = makeCard();
  let seen;
  const look = async () => {
    const name = widgetValue(node, "hgr_name");
    const unfit = misfit(name);
    const state = JSON.stringify([name, unfit, generation()]);
    if (state === seen) return;
    seen = state;
    if (name === undefined) return card.say("The node wired into hgr_name chooses the HGR.");
    const answer = await about(name);
    if (state !== seen) return;
    if (answer.error) card.say(answer.error);
    else card.show(answer, unfit);
  };
  addWidget(node, "about", CARD, card.element, { serialize: false, getMinHeight: () => CARD_HEIGHT + 20 }, look);
}

function addReport(node) {
  const report = makeReport();
  let drawn;
  const look = () => {
    const text = said([[node]], "reports").at(-1);
    if (drawn === text) return;
    drawn = text;
    report.show(text && JSON.parse(text));
    redraw(node);
  };
  addWidget(node, "verdict", REPORT, report.element, { serialize: false, getMinHeight: () => report.height + 20 }, look);
  // The picture of the chart, for where this script is not, would say the same again.
  node.hideOutputImages = true; // Nodes 2.0
  node.onDrawBackground = () => {}; // the classic renderer
}

/** Nobody says when a node upstream is bypassed, rewired or given another file, so we look. In subgraphs too. */
function look() {
  notice();
  const root = rootGraph();
  for (const node of root ? graphs(root).flatMap(({ nodes }) => nodes) : []) {
    if (node.subgraph) showPromoted(node);
    for (const widget of node.widgets ?? []) {
      try {
        widget.safecfgLook?.();
      } catch (error) { // one node must not keep the others from looking
        console.debug("SafeCFG:", error);
      }
    }
  }
}

function say(what, detail) {
  app.extensionManager.toast.add({ severity: "error", summary: `${NAME} ${what}`, detail, life: READING });
}

async function showPolicy() {
  try {
    const answer = await api.fetchApi("/safecfg/policy");
    const shield = answer.ok && badge(await answer.json());
    if (!shield) return;
    app.registerExtension({ name: `${NAME}.policy`, topbarBadges: [shield] });
    if (shield.variant === "error") say(shield.text, shield.tooltip); // graphs only say that this pack's nodes are missing
  } catch (error) { // the shield is only a drawing
    console.debug("SafeCFG:", error);
  }
}

// a second copy of the pack brings this script once more: the server says so in its log
if (!app.extensions?.some(({ name }) => name === NAME)) app.registerExtension({
  name: NAME,
  getCustomWidgets: () => ({ [ROWS]: conceptsWidget }),
  beforeRegisterNodeDef(nodeType, nodeData) {
    const spec = nodeData.input?.required?.concepts;
    if (nodeData.category?.startsWith("SafeCFG") && spec?.[0] === "STRING") spec[1] = { ...spec[1], widgetType: ROWS };
  },
  nodeCreated(node) {
    if (node.comfyClass === "SafeCFGHGRLoader") addCard(node);
    if (node.comfyClass === "SafeCFGDetector") addReport(node);
  },
  afterConfigureGraph: graphLoaded,
  setup() {
    addStyle(new URL("./safecfg.css", import.meta.url));
    listen();
    api.addEventListener("execution_success", forget); // a file may have been saved
    api.addEventListener("execution_error", ({ detail }) => {
      const why = refusal(detail);
      if (why) say("policy", why);
    });
    setInterval(look, LOOK);
    showPolicy();
  },
  refreshComboInNodes: forget,
});
