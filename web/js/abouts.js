// What the server says of HGR files, asked once for each.

import { api } from "../../../scripts/api.js";

const answers = new Map(); // by name, as promises
let asked = 0; // how often all was forgotten

/** What the server says of the HGR of this name: {concepts, ...}, or {error}. */
export function about(name) {
  if (!answers.has(name)) {
    answers.set(name, api.fetchApi(`/safecfg/hgr/${encodeURIComponent(name)}`).then((answer) => answer.json())
      .catch((error) => ({ error: `Could not get HGR "${name}" from the server (${error.message}).` })));
  }
  return answers.get(name);
}

/** Ask again: files may have changed. */
export function forget() {
  answers.clear();
  asked++;
}

/** A number that changes whenever answers may. */
export const generation = () => asked;
