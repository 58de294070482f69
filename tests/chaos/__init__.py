"""`make chaos`: a whole shop under load while its processes are killed and frozen, and the proof from its log."""
