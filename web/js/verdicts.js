// What the last run of the open workflow said of its nodes.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { Runs } from "./runs.js";
import { pathOf } from "./upstream.js";

const runs = new Runs();
let configured = false; // a graph has been loaded
let seen = {};

/** Stands for the open workflow: the host's record of its changes, which it has from opening it to closing it. */
const open = () => app.extensionManager.workflow.activeWorkflow?.changeTracker ?? undefined;

export const rootGraph = () => app.rootGraph ?? app.graph;

/** Whether an execution id leads to a node by one of these paths, which may leave out the outermost subgraph nodes. */
function leadsTo(paths) {
  return (id) => {
    const found = pathOf(rootGraph(), id);
    return paths.some((path) => path.every((node, i) => node === found.at(i - path.length)));
  };
}

/** What the last run said of the nodes at the end of these paths. kind: "fired" or "reports". */
export const said = (paths, kind) => runs.last(open(), kind, leadsTo(paths));

/** The concepts that a run last found there; undefined if none has said. */
export const lastConcepts = (paths) => runs.concepts(open(), leadsTo(paths));

/** Why the HGR of this name did not fit the last run's text encoder, as the error said; undefined if none did. */
export const misfit = (name) => runs.last(open(), "misfits", () => true).find((text) => text.startsWith(`${name} was made for `));

export function listen() {
  // No event says which workflow a run was queued from, so the answer to queueing is read as it passes by.
  const { queuePrompt } = api;
  api.queuePrompt = async function (...given) {
    const workflow = open();
    const answer = await queuePrompt.apply(this, given);
    if (answer?.prompt_id) runs.queued(answer.prompt_id, workflow);
    return answer;
  };
  api.addEventListener("execution_start", ({ detail }) => runs.started(detail.prompt_id));
  api.addEventListener("safecfg.fired", ({ detail }) => runs.said(detail.prompt_id, "fired", detail.node, detail));
  api.addEventListener("execution_error", ({ detail: { prompt_id: prompt, node_id: node, exception_type: type, exception_message: text } }) => {
    if (type?.endsWith(".EncoderMismatch")) runs.said(prompt, "misfits", node, text.trim());
  });
  api.addEventListener("executed", ({ detail: { prompt_id: prompt, node, display_node: shown, output } }) => {
    if (output?.report) runs.said(prompt, "reports", shown ?? node, output.report[0]);
  });
}

export function graphLoaded() {
  configured = true;
}

/**
 * Forget what was said of the open workflow if another graph was loaded into it, as by opening the same template again.
 * The host begins a new record of changes then. On undo, which loads a graph too, it does not; on saving it does, but loads none.
 */
export function notice() {
  const now = { workflow: open(), state: open()?.initialState };
  if (now.workflow === seen.workflow && now.state !== seen.state && configured) runs.forget(now.workflow);
  if (now.workflow !== seen.workflow || now.state !== seen.state) configured = false;
  seen = now;
}
