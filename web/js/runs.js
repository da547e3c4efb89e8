// What the last runs said of the nodes, and from which open workflow each run was queued. Two workflows may have the same ids, and
// runs may come from elsewhere, so what a run said belongs to the workflow that queued it and to no other.

const KEPT = 1000; // runs, the newest

export class Runs {
  #workflows = new Map(); // where each run was queued, by prompt id; weak, as a workflow may be closed
  #runs = new Map(); // what each said, by prompt id, in the order of their starts

  /** workflow: an object that stands for the open workflow, from its opening to its closing. */
  queued(prompt, workflow) {
    if (workflow) keep(this.#workflows, prompt, new WeakRef(workflow));
  }

  started(prompt) {
    keep(this.#runs, prompt, { fired: new Map(), reports: new Map(), misfits: new Map() });
  }

  /** Keep what a run says of a node. kind: "fired", "reports" or "misfits". node: its execution id. The workflow may become known later. */
  said(prompt, kind, node, what) {
    if (!this.#runs.has(prompt)) this.started(prompt);
    this.#runs.get(prompt)[kind].set(node, what);
  }

  /** What the last run that was queued from this workflow says of the nodes that are wanted. */
  last(workflow, kind, wanted) {
    return this.#of(workflow).slice(0, 1).flatMap((run) => select(run[kind], wanted));
  }

  /** The concepts that a run last found behind the wanted nodes; undefined if none has said. */
  concepts(workflow, wanted) {
    for (const run of this.#of(workflow)) {
      const found = select(run.fired, wanted).flatMap(({ concepts }) => concepts ?? []);
      if (found.length) return found;
    }
    return undefined;
  }

  /** Another graph was loaded into this workflow. */
  forget(workflow) {
    for (const [prompt, queued] of this.#workflows) if (queued.deref() === workflow) this.#workflows.delete(prompt);
  }

  /** The runs of a workflow, the newest first. */
  #of(workflow) {
    if (!workflow) return [];
    return [...this.#runs].filter(([prompt]) => this.#workflows.get(prompt)?.deref() === workflow).map(([, run]) => run).reverse();
  }
}

function keep(map, key, value) {
  map.set(key, value);
  if (map.size > KEPT) map.delete(map.keys().next().value);
}

const select = (said, wanted) => [...said].filter(([node]) => wanted(node)).map(([, what]) => what);
