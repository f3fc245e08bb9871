"""The official numbers of DCASE 2026 Task 2: AUC, partial AUC, official score, and decisions."""

from .official import (
    BootstrapInterval,
    DecisionMetrics,
    MachineMetrics,
    bootstrap_draws,
    bootstrap_interval,
    decision_metrics,
    domain_decision_metrics,
    machine_metrics,
    mean_decision_metrics,
    official_score,
)

__all__ = [
    "BootstrapInterval",
    "DecisionMetrics",
    "MachineMetrics",
    "bootstrap_draws",
    "bootstrap_interval",
    "decision_metrics",
    "domain_decision_metrics",
    "machine_metrics",
    "mean_decision_metrics",
    "official_score",
]
