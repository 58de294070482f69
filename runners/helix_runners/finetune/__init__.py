"""Fine-tunes: a LoRA adapter learnt from a dataset, step by step, with checkpoints that any runner goes on from."""
