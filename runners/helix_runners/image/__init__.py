"""Pictures: many requests, step by step, on one diffusion model that stays in memory."""
