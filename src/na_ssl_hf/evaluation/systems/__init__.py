"""The published systems by name, and what runs them on a data set."""
