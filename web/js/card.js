// What an HGR file holds, in a few lines below its name.

import { element } from "./dom.js";

export const CARD_HEIGHT = 126;

/** [title, text] of each line. misfit: why it did not fit in the last run. */
export function facts({ concepts, encoder, training, library, probe, date }, misfit) {
  return [
    ["does not fit", misfit],
    ["concepts", concepts.map(({ id, label }) => label || id).join(", ")],
    ["for", encoder],
    ["quality", quality(training)],
    ["finds", finds(training, concepts)],
    ["false alarms", falseAlarms(training)],
    ["trained on", trainedOn(training)],
    ["library", libraries(training, library)],
    ["detects", probe ? "in prompts and in pictures" : "in prompts"],
    ["file date", new Date(date).toLocaleDateString(undefined, { dateStyle: "medium" })],
  ].filter(([, text]) => text);
}

/** The trainings that an HGR comes from: several if it was merged. */
const parts = (training) => (Array.isArray(training?.merged) ? training.merged : [training]);
const texts = (found) => [...new Set(found.filter((one) => typeof one === "string"))].join(", ");

/** As HGR for this Model calls it; otherwise, what the HGR learnt from. */
const quality = (training) => texts(parts(training).map((part) =>
  part?.quality ?? (typeof part?.losses === "string" ? `losses: ${part.losses}` : undefined)));

/** The versions of the library that HGR for this Model made it from, beside the installed one. */
const libraries = (training, installed) => texts(parts(training).map((part) => part?.library).map((made) =>
  (typeof made !== "string" ? undefined : made === installed ? `${made}, the installed one` : `${made}; installed is ${installed}`)));

const WEAK = 0.75; // recall below which a concept is called weak, as in Train HGR's report
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

/** The recall of each concept on prompts that were held out. */
function finds(training, concepts) {
  return concepts.map(({ id, label }) => [label || id, training?.metrics?.concepts?.[id]?.recall])
    .filter(([, recall]) => Number.isFinite(recall))
    .map(([label, recall]) => `${label} ${percent(recall)}${recall < WEAK ? " (weak)" : ""}`).join(", ");
}

function falseAlarms(training) {
  const { flagged_clean: flagged, clean_prompts: count } = training?.metrics ?? {};
  if (!Number.isFinite(flagged) || !Number.isFinite(count)) return "";
  const asked = training.false_positive_rate;
  return `${percent(flagged)} of ${count} clean prompts${Number.isFinite(asked) ? `, ${percent(asked)} asked for` : ""}`;
}

/** Files say what they like of their training; what is not said is left out. */
function trainedOn(training) {
  if (Array.isArray(training?.merged)) return `${training.merged.length} HGRs, merged`;
  const pairs = Object.values(training?.data?.pairs ?? {}).filter(Number.isFinite);
  const parts = [
    pairs.length && `${pairs.reduce((a, b) => a + b)} pairs`,
    Number.isFinite(training?.data?.clean) && `${training.data.clean} clean prompts`,
    Number.isFinite(training?.steps) && `${training.steps} steps`,
  ].filter(Boolean);
  return parts.join(", ") || "unknown";
}

export function makeCard() {
  const list = element("dl", { class: "safecfg safecfg-card", "aria-label": "About this HGR", "data-capture-wheel": "true" });
  list.style.minHeight = `${CARD_HEIGHT}px`;
  return {
    element: list,
    show: (about, misfit) => list.replaceChildren(...facts(about, misfit).flatMap(([title, text]) => {
      const mark = text === misfit ? { class: "safecfg-misfit" } : {};
      return [element("dt", mark, title), element("dd", { title: text, ...mark }, text)];
    })),
    say: (text) => list.replaceChildren(element("p", { class: "safecfg-note" }, text)),
  };
}
