"""The cards are what the hub takes: huggingface_hub reads their metadata, and their numbers are those of the text."""

import re
from pathlib import Path

import pytest
import transformers
from huggingface_hub import InferenceClient, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

import na_ssl_hf

CARDS = sorted((Path(__file__).parent.parent / "model_cards").glob("*.md"))
# Results of the distillation itself, which `training/model_card.py` writes with more digits than the text has.
OF_TRAINING = "simulated-two-channel-mixtures"
# Checkpoints that were measured in noise or by machine: the worst row belongs into the metadata, too.
WITH_WORST_ROWS = {
    "na-beats-tiny": 3.63,
    "na-eat-tiny": 1.57,
    "eat-tiny-distilled": 65.6,
    "beats-tiny-distilled": 66.0,
    "na-eat-tiny-distilled": 17.58,
}


@pytest.fixture(params=CARDS, ids=lambda path: path.stem)
def card(request):
    return request.param.stem, ModelCard.load(request.param, ignore_metadata_errors=False)


def test_metadata_is_what_the_hub_shows(card):
    _, loaded = card
    data = loaded.data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "audio-classification"
    assert data.license in ("apache-2.0", "mit", "other")
    assert data.license != "other" or re.fullmatch(r"[a-z0-9-]+", data.license_name)
    assert {"audio", "anomaly-detection"} <= set(data.tags)
    for name in [data.base_model, *(data.datasets or [])]:
        if name is not None:
            validate_repo_id(name)


def test_every_pipeline_tag_is_a_task_of_the_hub_and_of_transformers():
    shipped = Path(na_ssl_hf.__file__).parent
    tags = {str(path): ModelCard.load(path).data.pipeline_tag for path in (*CARDS, *shipped.rglob("README.md"))}
    for path in (shipped / "training").glob("*card.py"):
        (tags[str(path)],) = re.findall(r'pipeline_tag="(.*?)"', path.read_text(encoding="utf-8"))
    assert len(tags) > len(CARDS) + 4
    tasks = transformers.pipelines.PIPELINE_REGISTRY.supported_tasks
    for path, tag in tags.items():
        assert tag in tasks, path
        # The task of this package is one of transformers as well, but none of the hub.
        assert hasattr(InferenceClient, tag.replace("-", "_")), path


def test_results_survive_the_reader_of_the_hub_and_stand_in_the_text(card):
    name, loaded = card
    results = loaded.data.eval_results or []
    if results:
        index = eval_results_to_model_index(name, results)
        again_name, again = model_index_to_eval_results(index)
        assert (again_name, again) == (name, results)
    for result in results:
        assert isinstance(result.metric_value, int | float)
        if result.dataset_type != OF_TRAINING:
            number = rf"(?<![\d.]){re.escape(str(result.metric_value))}0?(?![\d.]\d)"
            assert re.search(number, loaded.text), result


def test_the_worst_rows_are_in_the_metadata():
    found = {}
    for path in CARDS:
        results = ModelCard.load(path).data.eval_results or []
        found[path.stem] = [result.metric_value for result in results]
    assert all(worst in found[name] for name, worst in WITH_WORST_ROWS.items())
