"""Whatever found the model finds its memory: folder, subfolder, cache, revision, token."""

import hashlib
import http.server
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from tiny_models import tiny_model
from transformers import AutoFeatureExtractor, AutoModel, pipeline

from na_ssl_hf import AnomalyScorer, BeatsModel, NABeatsModel, TwoChannelFeatureExtractor

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def clip(seed):
    return 0.05 * np.random.default_rng(seed).standard_normal((2, 8000)).astype(np.float32)


def fitted(first_seed):
    scorer = AnomalyScorer(model=tiny_model("na-beats"), feature_extractor=TwoChannelFeatureExtractor())
    seeds = range(first_seed, first_seed + 8)
    return scorer.fit([clip(seed) for seed in seeds], false_alarm_rate=0.2, progress=None)


@pytest.fixture(scope="module")
def scorers():
    """Two scorers of one model with different memories, by revision."""
    return {"main": fitted(0), "v1": fitted(100)}


@pytest.fixture(scope="module")
def cache(scorers, tmp_path_factory):
    """A cache with a downloaded repository of two revisions, the scorer itself and one more in a subfolder."""
    cache = tmp_path_factory.mktemp("cache")
    repository = cache / "models--acme--fan"
    (repository / "refs").mkdir(parents=True)
    for revision, scorer in scorers.items():
        snapshot = repository / "snapshots" / COMMITS[revision]
        scorer.save_pretrained(snapshot)
        scorer.save_pretrained(snapshot / "inner")
        (repository / "refs" / revision).write_text(COMMITS[revision])
    return cache


def loaded(name, **options):
    parts = {"model": AutoModel, "feature_extractor": AutoFeatureExtractor}
    return AnomalyScorer(**{part: auto.from_pretrained(name, **options) for part, auto in parts.items()})


@pytest.mark.parametrize("revision", ["main", "v1"])
@pytest.mark.parametrize("subfolder", [None, "inner"])
def test_the_memory_is_found_by_the_options_that_found_the_model(scorers, cache, revision, subfolder):
    options = {"cache_dir": str(cache), "revision": revision, "local_files_only": True}
    options |= {"subfolder": subfolder} if subfolder else {}
    assert loaded("acme/fan", **options)(clip(50)) == scorers[revision](clip(50))


def test_a_class_of_its_own_finds_it_too(scorers, cache):
    model = NABeatsModel.from_pretrained("acme/fan", cache_dir=cache)
    extractor = AutoFeatureExtractor.from_pretrained("acme/fan", cache_dir=cache)
    assert AnomalyScorer(model=model, feature_extractor=extractor)(clip(50)) == scorers["main"](clip(50))


def test_options_of_the_pipelines_model_count(scorers, cache):
    extractor = AutoFeatureExtractor.from_pretrained("acme/fan", cache_dir=cache)
    options = {"revision": "v1", "model_kwargs": {"cache_dir": str(cache)}}
    scorer = pipeline("anomaly-scoring", model="acme/fan", feature_extractor=extractor, **options)
    assert scorer(clip(50)) == scorers["v1"](clip(50))


def test_a_local_subfolder_is_found(scorers, tmp_path):
    scorers["main"].save_pretrained(tmp_path / "deep" / "scorer")
    assert loaded(str(tmp_path / "deep"), subfolder="scorer")(clip(50)) == scorers["main"](clip(50))


def test_a_checkpoint_without_memory_has_none(tmp_path):
    tiny_model("beats").save_pretrained(tmp_path)
    TwoChannelFeatureExtractor().save_pretrained(tmp_path)
    assert loaded(str(tmp_path)).memory_bank is None


def test_the_token_is_not_pickled_with_the_model(tmp_path):
    tiny_model("beats").save_pretrained(tmp_path)
    model = BeatsModel.from_pretrained(tmp_path, token="hf_secret")
    assert model.found_with["token"] == "hf_secret"
    assert b"hf_secret" not in pickle.dumps(model)


PRIVATE = """
import sys
from transformers import pipeline
import na_ssl_hf
scorer = pipeline("anomaly-scoring", model="acme/private", token="hf_x")
print(scorer.memory_bank.num_clips_)
"""


def test_the_memory_of_a_private_repository_is_asked_for_with_the_token(scorers, tmp_path):
    folder = tmp_path / "scorer"
    scorers["main"].save_pretrained(folder)

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            file = folder / self.path.split("?")[0].rsplit("/", 1)[-1]
            is_known = self.headers.get("authorization") == "Bearer hf_x"
            code = 401 if not is_known else 200 if "/resolve/" in self.path and file.is_file() else 404
            body = file.read_bytes() if code == 200 else b""
            headers = {"X-Repo-Commit": "c" * 40, "ETag": hashlib.sha1(body).hexdigest()}
            if code != 200:
                headers["X-Error-Code"] = "RepoNotFound" if code == 401 else "EntryNotFound"
            self.send_response(code)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", PRIVATE], capture_output=True, text=True, env=environment)
    server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "8"
