"""Evaluation: the official metrics, baselines, the published systems and how they run, and reports."""
