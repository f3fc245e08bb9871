"""Which pipeline a checkpoint's `config.json` may ask remote code for."""

from typing import Any


def drop_registered_pipelines(config_kwargs: dict[str, Any]) -> None:
    """Remove from `custom_pipelines` the tasks that this process already serves.

    A checkpoint with `custom_pipelines` in its `config.json` makes `pipeline(task, dir)` demand `trust_remote_code`
    even where the task is registered by the installed package. Dropping the entry on load lets the package serve it;
    `AnomalyScorer.save_pretrained` writes it again.

    Args:
        config_kwargs: the keyword arguments of a configuration, changed in place.
    """
    # Imported here: the pipelines package is slow to import and a configuration must stay light.
    from transformers.pipelines import PIPELINE_REGISTRY

    custom_pipelines = config_kwargs.get("custom_pipelines") or {}
    for task in [task for task in custom_pipelines if task in PIPELINE_REGISTRY.supported_tasks]:
        del custom_pipelines[task]
