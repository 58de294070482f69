"""Everything that speaks to NATS; no other room imports it."""
