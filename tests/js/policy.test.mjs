import assert from "node:assert/strict";
import { test } from "node:test";

import { badge, refusal } from "../../web/js/policy.js";

const policy = { strength: 1, sensitivity: "normal", pictures: "off", unjudged: ["lora"] };

test("no policy, no shield", () => {
  assert.equal(badge({ policy: null, fault: "", changed: false }), undefined);
});

test("the shield says what is in force", () => {
  const shield = badge({ policy, fault: "", changed: false });
  assert.equal(`${shield.label} ${shield.text}`, "SafeCFG policy");
  assert.match(shield.tooltip, /strength 1, sensitivity normal\. Refused: pictures as prompts, start pictures\.$/);
  assert.doesNotMatch(shield.tooltip, /judged|restart/);
  const judged = badge({ policy: { ...policy, pictures: "blur" }, fault: "", changed: false }).tooltip;
  assert.match(judged, /Pictures.*\(blur\)/);
  assert.doesNotMatch(judged, /Refused/);
  assert.doesNotMatch(badge({ policy: { ...policy, unjudged: ["lora", "ip_adapter", "image_to_image"] } }).tooltip, /Refused/);
});

test("a broken policy and a changed one stand out", () => {
  const broken = badge({ policy: null, fault: "safecfg_policy.json: it is not valid JSON.", changed: false });
  assert.equal(broken.variant, "error");
  assert.match(broken.tooltip, /^Nothing is sampled\. safecfg_policy\.json: it is not valid JSON\.$/);
  assert.match(badge({ policy, fault: "", changed: true }).tooltip, /restart/);
});

test("of errors, only the policy's are told", () => {
  assert.equal(refusal({ exception_message: "SafeCFG policy: a LoRA acts.\n" }), "A LoRA acts.");
  for (const exception_message of ["out of memory", "", undefined]) assert.equal(refusal({ exception_message }), undefined);
});
