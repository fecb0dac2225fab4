"""What a number format costs in KL divergence, and which formats to take: pure functions over a sensitivity file."""
