"""The shop in virtual time: the fold and the decisions of the real one, with simulated clients and GPUs around them."""
