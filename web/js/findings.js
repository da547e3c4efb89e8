// What a run found in its prompts, in words.

const percent = (x) => `${Math.round(100 * x)} %`;

/** Lines to draw: {text} alone, or with {gate, threshold} in [0, 1] as a bar. prompts: of each, the concepts found in it. */
export function lines(prompts) {
  return prompts.flatMap((found, i) => {
    const title = prompts.length > 1 ? `Prompt ${i + 1}: ` : "";
    if (!found.length) return [{ text: `${title}clean prompt: guidance untouched` }];
    return found.map(({ label, gate, threshold, strength }) => ({
      text: `${title}${label} ${percent(gate)}${strength ? "" : ", switched off"}`, gate, threshold, off: !strength,
    }));
  });
}
