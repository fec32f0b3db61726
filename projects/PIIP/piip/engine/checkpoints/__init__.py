"""What writes checkpoints into the output folder, and what reads them."""
