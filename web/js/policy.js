// The shield in the top bar while the server's operator has a policy in force, and what it refuses. It only shows.

const REFUSED = { lora: "LoRAs and merges", ip_adapter: "pictures as prompts", image_to_image: "start pictures" };

/** The badge for what the server answers; undefined where there is no policy. The editor draws its label before its text. */
export function badge({ policy, fault, changed }) {
  if (fault) return { ...SHIELD, text: "policy broken", variant: "error", tooltip: `Nothing is sampled. ${fault}` };
  if (!policy) return undefined;
  const refused = policy.pictures === "off" ? Object.keys(REFUSED).filter((kind) => !policy.unjudged.includes(kind)) : [];
  const rules = [
    changed && "Its file has changed: it counts after a restart.",
    "SafeCFG acts in every sampling run of this server, whatever the graph says.",
    `Least strength ${policy.strength}, sensitivity ${policy.sensitivity}.`,
    policy.pictures !== "off" && `Pictures are judged before they are saved or shown (${policy.pictures}).`,
    refused.length && `Refused: ${refused.map((kind) => REFUSED[kind]).join(", ")}.`,
  ];
  return { ...SHIELD, text: changed ? "policy changed" : "policy", variant: changed ? "warning" : "info",
    tooltip: rules.filter(Boolean).join(" ") };
}

const SHIELD = { label: "SafeCFG", icon: "pi pi-shield" };

/** The sentence of a run that the policy refused; undefined for other errors. The editor keeps it behind "View details". */
export function refusal({ exception_message: text }) {
  const why = text?.match(/^\s*SafeCFG policy: ([^]*)/)?.[1].trim();
  return why && why[0].toUpperCase() + why.slice(1);
}
