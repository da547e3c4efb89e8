import assert from "node:assert/strict";
import { test } from "node:test";

import { badge } from "../../web/js/policy.js";

const policy = { strength: 1, sensitivity: "normal", pictures: "off" };

test("no policy, no shield", () => {
  assert.equal(badge({ policy: null, fault: "", changed: false }), undefined);
});

test("the shield says what is in force", () => {
  const shield = badge({ policy, fault: "", changed: false });
  assert.equal(shield.label, "policy");
  assert.match(shield.tooltip, /strength 1, sensitivity normal/);
  assert.doesNotMatch(shield.tooltip, /Pictures|restart/);
  assert.match(badge({ policy: { ...policy, pictures: "blur" }, fault: "", changed: false }).tooltip, /Pictures.*\(blur\)/);
});

test("a broken policy and a changed one stand out", () => {
  const broken = badge({ policy: null, fault: "safecfg_policy.json: it is not valid JSON.", changed: false });
  assert.equal(broken.variant, "error");
  assert.match(broken.tooltip, /^Nothing is sampled\. safecfg_policy\.json: it is not valid JSON\.$/);
  assert.match(badge({ policy, fault: "", changed: true }).tooltip, /restart/);
});
