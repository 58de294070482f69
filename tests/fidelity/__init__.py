"""Does the simulator foretell what the real system does? A real shop runs, and is simulated after its own log."""
