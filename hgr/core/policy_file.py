"""Where an operator's policy is. Imports nothing: whether there is one must be known when all else fails."""

FILE_NAME, VARIABLE = "safecfg_policy.json", "SAFECFG_POLICY"
