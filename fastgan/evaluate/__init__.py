"""What a system is worth, and the theory behind it checked by numbers: takes arrays or a sampler."""
