"""One run from its first offer to its last bill: journal, decisions, safeguards, supervisor."""
