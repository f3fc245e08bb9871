"""Registration of the package's models with transformers, at the moment when transformers' own classes are loaded.

`import na_ssl_hf` shall cost nothing where only names are asked for, yet torch and transformers take seconds of CPU
time to import. The package therefore imports neither. It watches for the four modules of transformers in which
`AutoConfig`, `AutoFeatureExtractor`, `AutoModel` and `pipeline` are defined, and registers its classes as soon as one
of these is loaded, before the statement that asked for it gets to see it. Which of the two packages is imported first
makes no difference.

What this costs: our modules are imported together with the auto classes. In one measurement
`from transformers import AutoModel` took 4.3 s of CPU time instead of 2.1 s, because our model files need what
transformers otherwise loads with its first model; `from transformers import pipeline` took 4.3 s with and without
us. A finder stays in `sys.meta_path` until all four modules have been loaded. Where several threads are the first to
import transformers at the same time, one of them may see an auto class an instant before our types are registered;
transformers itself does not promise that such imports succeed. `benchmarks/startup.py` measures the times.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .hub.configuration_noise_aware import CheckedConfig


def _encoder_configurations() -> "list[type[CheckedConfig]]":
    from .hub.configuration_beats import BeatsConfig, NABeatsConfig
    from .hub.configuration_dasheng import DashengConfig, NADashengConfig
    from .hub.configuration_eat import EatConfig, NAEatConfig
    from .hub.configuration_efficientat import EfficientATConfig

    return [
        BeatsConfig,
        DashengConfig,
        EatConfig,
        NABeatsConfig,
        NADashengConfig,
        NAEatConfig,
        EfficientATConfig,
    ]


def _register_configurations() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .hub.configuration_autoencoder import AutoencoderConfig

    configurations: list[type[CheckedConfig]] = [*_encoder_configurations(), AutoencoderConfig]
    for config in configurations:
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_feature_extractors() -> None:
    from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor

    from .hub.feature_extraction_two_channel import TwoChannelFeatureExtractor

    # The challenge's autoencoder makes its log-mel vectors itself and has no feature extractor.
    for config in _encoder_configurations():
        AutoFeatureExtractor.register(config, TwoChannelFeatureExtractor, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForAudioClassification

    from .hub.modeling_audio_classification import (
        BeatsForAudioClassification,
        DashengForAudioClassification,
        EatForAudioClassification,
        EfficientATForAudioClassification,
        NABeatsForAudioClassification,
        NADashengForAudioClassification,
        NAEatForAudioClassification,
    )
    from .hub.modeling_autoencoder import AutoencoderModel
    from .hub.modeling_beats import BeatsModel
    from .hub.modeling_dasheng import DashengModel
    from .hub.modeling_eat import EatModel
    from .hub.modeling_efficientat import EfficientATModel
    from .hub.modeling_noise_aware import NABeatsModel, NADashengModel, NAEatModel

    for model in (
        BeatsModel,
        DashengModel,
        EatModel,
        NABeatsModel,
        NADashengModel,
        NAEatModel,
        EfficientATModel,
        AutoencoderModel,
    ):
        AutoModel.register(model.config_class, model, exist_ok=True)
    for classifier in (
        BeatsForAudioClassification,
        DashengForAudioClassification,
        EatForAudioClassification,
        NABeatsForAudioClassification,
        NADashengForAudioClassification,
        NAEatForAudioClassification,
        EfficientATForAudioClassification,
    ):
        AutoModelForAudioClassification.register(classifier.config_class, classifier, exist_ok=True)


def _register_pipeline() -> None:
    from transformers.models.auto.modeling_auto import AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .hub.pipeline_anomaly_scoring import AnomalyScorer

    if "anomaly-scoring" not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline("anomaly-scoring", AnomalyScorer, pt_model=AutoModel, type="audio")


# The module of transformers that must be loaded, and what is registered then.
_REGISTRATIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_configurations,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractors,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.pipelines": _register_pipeline,
}
_HUB = f"{__package__}.hub."
_WATCHED = ("transformers.", _HUB)


class _RegistrationFinder(MetaPathFinder):
    """Notices when a module of transformers or of `hub/` has been executed, and registers what has become possible.

    Our model files need modules of transformers that themselves load `modeling_auto` halfway through. A registration
    therefore waits until the outermost of the watched modules that this thread is executing is complete.

    Attributes:
        pending: the registrations that are still to be done, by the module that they wait for.
        executing: thread and name of every watched module whose code is running.
    """

    def __init__(self) -> None:
        self.pending = dict(_REGISTRATIONS)
        self.executing: list[tuple[int, str]] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the ordinary spec of a watched module, whose loader calls `register_loaded` after its work."""
        if not fullname.startswith(_WATCHED):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            entry = (threading.get_ident(), fullname)
            self.executing.append(entry)
            try:
                execute(module)
            finally:
                self.executing.remove(entry)
            self.register_loaded()

        # Only this one method of this one loader is replaced, so that the loader keeps its type.
        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec

    def register_loaded(self) -> None:
        """Do the pending registrations whose modules are loaded, unless modules that they need are half loaded."""
        this_thread = threading.get_ident()
        # Another thread that is in the middle of `hub/` will do it when it is through; to wait for it could deadlock.
        if any(thread == this_thread or name.startswith(_HUB) for thread, name in list(self.executing)):
            return
        half_loaded = {name for _, name in list(self.executing)}
        for name in [name for name in self.pending if name in sys.modules and name not in half_loaded]:
            _REGISTRATIONS[name]()  # a second thread may do the same, which changes nothing
            self.pending.pop(name, None)
        if not self.pending and self in sys.meta_path:
            sys.meta_path.remove(self)


def register_with_transformers() -> None:
    """Register all classes with transformers now, as far as it is loaded, and the others when it loads them."""
    if any(isinstance(finder, _RegistrationFinder) for finder in sys.meta_path):
        return
    finder = _RegistrationFinder()
    sys.meta_path.insert(0, finder)
    finder.register_loaded()
