"""Writing of converted weights as a complete directory for `from_pretrained`, all or nothing."""

from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from na_ssl_hf.convert.weights import Weights, require_names
from na_ssl_hf.hub.configuration_beats import BeatsConfig, NABeatsConfig
from na_ssl_hf.hub.configuration_dasheng import DashengConfig, NADashengConfig
from na_ssl_hf.hub.configuration_eat import EatConfig, NAEatConfig
from na_ssl_hf.hub.configuration_efficientat import EfficientATConfig
from na_ssl_hf.hub.configuration_noise_aware import ConfigurationError
from na_ssl_hf.hub.feature_extraction_two_channel import TwoChannelFeatureExtractor
from na_ssl_hf.hub.modeling_audio_classification import EfficientATForAudioClassification
from na_ssl_hf.hub.modeling_beats import BeatsModel
from na_ssl_hf.hub.modeling_dasheng import DashengModel
from na_ssl_hf.hub.modeling_eat import EatModel
from na_ssl_hf.hub.modeling_noise_aware import NABeatsModel, NADashengModel, NAEatModel
from na_ssl_hf.hub.whole_files import whole_folder

# The kind of a checkpoint is the model type of what it becomes.
CLASSES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "beats": (BeatsConfig, BeatsModel),
    "dasheng": (DashengConfig, DashengModel),
    "eat": (EatConfig, EatModel),
    "efficientat": (EfficientATConfig, EfficientATForAudioClassification),
    "na-beats": (NABeatsConfig, NABeatsModel),
    "na-dasheng": (NADashengConfig, NADashengModel),
    "na-eat": (NAEatConfig, NAEatModel),
}


def refuse_destination(destination: str | Path) -> None:
    """Raise a `FileExistsError` where `destination` is a file or a directory that is not empty."""
    path = Path(destination)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"The destination {path} already exists; choose another or remove it.")


def build_model(kind: str, weights: Weights, source: str | Path) -> PreTrainedModel:
    """Make one of our models with exactly these weights.

    Raises:
        ValueError: the configuration refuses a size, a name is missing or unexpected, or a shape is wrong.
    """
    config_class, model_class = CLASSES[kind]
    try:
        with no_init_weights():  # every tensor is replaced below, and drawing random ones takes seconds
            model = model_class(config_class(**weights.settings))
    except ConfigurationError as error:
        raise ValueError(f"The settings of {source} do not fit the model: {error}") from None
    expected = model.state_dict()
    require_names(weights.state, expected, source)
    for name, tensor in weights.state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} from {source} must have shape {tuple(expected[name].shape)}, got {tuple(tensor.shape)}."
            )
    model.load_state_dict(weights.state)
    return model.eval()


def write_model(kind: str, weights: Weights, destination: str | Path, source: str | Path) -> Path:
    """Write the weights, the configurations and the code of a model and its feature extractor.

    Args:
        kind: a name of `CLASSES`.
        weights: settings and tensors of the model.
        destination: a directory that does not exist yet, or is empty.
        source: the file that errors name.

    Raises:
        OSError: the destination is occupied or cannot be written.
        ValueError: the weights do not fit the model.
    """
    model = build_model(kind, weights, source)
    path = Path(destination).absolute()
    refuse_destination(path)  # again: reading took a while
    with whole_folder(path) as unfinished:
        model.save_pretrained(unfinished)
        TwoChannelFeatureExtractor.of(model.config).save_pretrained(unfinished)
    return Path(destination)
