"""The pure core: events, folds and decisions over plain values; no clock, no ids, no I/O."""
