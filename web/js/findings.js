// What a run found in its prompts, in words.

const UNUSED = {
  text: "not used in this run: this node feeds no sampler that ran", wrapped: true,
  hint: "Merging models can drop SafeCFG: put it after the merge, and lead its output to the sampler.",
};

const percent = (x) => `${Math.round(100 * x)} %`;

/** What was found for several nodes that are shown as one. */
export function together(found) {
  if (!found.length) return undefined;
  return {
    used: found.some(({ used }) => used),
    prompts: found.flatMap(({ prompts }) => prompts),
    notes: [...new Set(found.flatMap(({ notes }) => notes))],
  };
}

/**
 * Lines to draw: {text} alone, or with {gate, threshold} in [0, 1] as a bar. wrapped: a text of any length.
 * prompts: of each, the concepts found in it. notes: what SafeCFG cannot see.
 */
export function lines({ used, prompts, notes }) {
  const remarks = notes.map((text) => ({ text, wrapped: true }));
  if (!used) return [UNUSED, ...remarks];
  return [...prompts.flatMap((found, i) => {
    const title = prompts.length > 1 ? `Prompt ${i + 1}: ` : "";
    if (!found.length) return [{ text: `${title}clean prompt: guidance untouched` }];
    return found.map(({ label, gate, threshold, strength }) => ({
      text: `${title}${label} ${percent(gate)}${strength ? "" : ", switched off"}`, gate, threshold, off: !strength,
    }));
  }), ...remarks];
}
