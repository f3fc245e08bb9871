"""What a run writes: one HTML page that needs nothing else, and tables."""
