"""What documents mean: one typed kind a file, line numbers kept."""
