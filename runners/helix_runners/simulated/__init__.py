"""The simulated runner: thousands of GPUs in one process that compute nothing and load the real system."""
