"""This script gives `evaluate.load` the official numbers of DCASE 2026 Task 2, by the formulas of `evaluation.metrics`.

`evaluate` copies this file into a cache of its own before it runs, so imports are absolute; they name one module a
line, because its parser of imports reads no more.
"""

from dataclasses import asdict
from typing import Any

import datasets
import evaluate
import numpy as np

from na_ssl_hf.evaluation.metrics import (
    DecisionMetrics,
    MachineMetrics,
    domain_decision_metrics,
    machine_metrics,
    mean_decision_metrics,
    official_score,
)
from na_ssl_hf.hub.clip_embeddings import as_is_target

_DESCRIPTION = """
AUC of the source and of the target domain, partial AUC and official score of DCASE 2026 Challenge Task 2, "First-shot
unsupervised anomalous sound detection for machine condition monitoring", and precision, recall and F1 of decisions.
"""

_CITATION = """
@misc{dcase2026task2,
  title = {{DCASE} 2026 Challenge Task 2: Anomalous Sound Detection for Machine Condition Monitoring},
  howpublished = {\\url{https://dcase.community/challenge2026/}},
  year = {2026},
}
"""

_INPUTS = """
Args:
    predictions: anomaly scores of the test clips; higher = more anomalous.
    references: 1 for an anomaly, 0 for a normal clip.
    domains: "source" or "target" for each clip.
    machines: the machine type of each clip.
    decisions (optional): 1 for an alarm, 0 for none, for all clips in one `compute`. To add them batch by batch, load
        the module with the config name "decisions".
Returns:
    official_score: harmonic mean of the three values of all machines.
    machines: for each machine a dict with auc_source, auc_target, pauc and official_score.
    With decisions also precision, recall and f1, harmonic means over machines and domains, and for each machine
    precision_source, precision_target, recall_source, ... of the clips of one domain.
Raises:
    ValueError: scores that are not finite, other labels or domains, or a machine without anomalies or without normal
        clips of one domain.
Examples:
    >>> metric = evaluate.load(metric_path())
    >>> metric.compute(
    ...     predictions=[0.1, 0.9, 0.2, 0.8],
    ...     references=[0, 1, 0, 1],
    ...     domains=["source", "source", "target", "target"],
    ...     machines=["fan", "fan", "fan", "fan"],
    ... )["machines"]
    {'fan': {'auc_source': 1.0, 'auc_target': 1.0, 'pauc': 1.0, 'official_score': 1.0}}
"""

_CONFIGS = ("default", "decisions")


class Dcase2026Task2(evaluate.Metric):
    """The official score of DCASE 2026 Task 2 as a metric of `evaluate`; its `inputs_description` names the inputs."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in _CONFIGS:
            raise ValueError(f"config_name must be one of {_CONFIGS}, got {self.config_name!r}.")
        # Labels as floats, because a cast to int or bool would hide values other than 0 and 1.
        number, text = datasets.Value("float64"), datasets.Value("string")
        features = {"predictions": number, "references": number, "domains": text, "machines": text}
        if self.config_name == "decisions":
            features["decisions"] = number
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://dcase.community/challenge2026/"],
        )

    def _compute(
        self,
        predictions: list[float],
        references: list[float],
        domains: list[str],
        machines: list[str],
        decisions: list[float] | None = None,
    ) -> dict[str, Any]:
        if decisions is not None and len(decisions) != len(predictions):
            raise ValueError(
                f"decisions must have one entry for each of the {len(predictions)} clips, got {len(decisions)}."
            )
        scores, is_anomaly, names = np.asarray(predictions), np.asarray(references), np.asarray(machines)
        is_target = np.asarray(as_is_target(domains, len(predictions)))
        is_alarm = None if decisions is None else np.asarray(decisions)
        results: dict[str, dict[str, float]] = {}
        of_machines: list[MachineMetrics] = []
        of_domains: list[DecisionMetrics] = []
        for machine in sorted(set(machines)):
            clips = names == machine
            try:
                of_machines.append(machine_metrics(scores[clips], is_anomaly[clips], is_target[clips]))
                result = of_machines[-1].as_dict()
                if is_alarm is not None:
                    by_domain = domain_decision_metrics(is_alarm[clips], is_anomaly[clips], is_target[clips])
                    for domain, values in by_domain.items():
                        of_domains.append(values)
                        result |= {f"{name}_{domain}": value for name, value in asdict(values).items()}
            except ValueError as error:
                raise ValueError(f"machine {machine!r}: {error}") from error
            results[machine] = result
        means = asdict(mean_decision_metrics(of_domains)) if of_domains else {}
        return {"official_score": official_score(of_machines), **means, "machines": results}
