"""A portal's webhook API as a target: its contract, signed requests, and what its answers mean (R27)."""
