"""Training steps as a good PyTorch user writes them, one readable file each."""
