"""The page of a watch: states, scores, events and their sound, in a browser."""
