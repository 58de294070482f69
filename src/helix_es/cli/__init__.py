"""The `helix` command: one file a group of commands, heavy imports only inside the command that needs them."""
