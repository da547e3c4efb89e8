// The value of a `concepts` input: one JSON string of strengths by concept id. A missing id means on at 1, an empty text all on.

export const MAX = 2;

/** The strengths in the text; undefined where it is not a JSON object of numbers from 0 to 2. */
export function parse(text) {
  try {
    const given = text.trim() ? JSON.parse(text) : {};
    const sound = given && typeof given === "object" && !Array.isArray(given) && Object.values(given).every(isStrength);
    return sound ? given : undefined;
  } catch {
    return undefined;
  }
}

/** true and false may stand for 1 and 0, as in the nodes. */
function isStrength(value) {
  return typeof value === "boolean" || (typeof value === "number" && value >= 0 && value <= MAX);
}

/** How the nodes compare ids: "Skull" means skull too. */
const plain = (id) => id.trim().toLowerCase();

export function strengthOf(text, id) {
  const given = parse(text) ?? {};
  const key = Object.hasOwn(given, id) ? id : Object.keys(given).find((key) => plain(key) === plain(id));
  return key === undefined ? 1 : Number(given[key]);
}

/** The text with these ids at this strength. What it says of other ids stays: they may be those of another HGR. */
export function withStrength(text, ids, strength) {
  const meant = new Set(ids.map(plain));
  const others = Object.entries(parse(text) ?? {}).filter(([key]) => ids.includes(key) || !meant.has(plain(key)));
  return JSON.stringify({ ...Object.fromEntries(others), ...Object.fromEntries(ids.map((id) => [id, strength])) });
}

/** The ids that the text speaks of, as concepts: what can be shown where no HGR says more. */
export function stored(text) {
  return Object.keys(parse(text) ?? {}).map((id) => ({ id, label: id, description: "" }));
}
