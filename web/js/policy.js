// The shield in the top bar while the server's operator has a policy in force. It only shows.

/** The badge for what the server answers; undefined where there is no policy. */
export function badge({ policy, fault, changed }) {
  if (fault) return { ...SHIELD, label: "broken", variant: "error", tooltip: `Nothing is sampled. ${fault}` };
  if (!policy) return undefined;
  const rules = [
    "Every sampling run of this server is redirected, whatever the graph says.",
    `Least strength ${policy.strength}, sensitivity ${policy.sensitivity}.`,
    policy.pictures !== "off" && `Pictures are judged before they are saved or shown (${policy.pictures}).`,
    changed && "Its file has changed: it counts after a restart.",
  ];
  return { ...SHIELD, label: changed ? "restart" : "policy", variant: changed ? "warning" : "info",
    tooltip: rules.filter(Boolean).join(" ") };
}

const SHIELD = { text: "SafeCFG", icon: "pi pi-shield" };
