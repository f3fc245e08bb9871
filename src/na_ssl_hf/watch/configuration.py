"""The file that says which machines are watched, from which sources, and with which promise (`watch.toml`)."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

from .alarm_rule import parse_duration
from .monitor import MonitorSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Key -> the type of its value, and what messages call it.
_SETTINGS: dict[str, tuple[Any, str]] = {
    "window": (Real, "a number of seconds"),
    "hop": (Real, "a number of seconds"),
    "false_alarms_per": (str, "a time such as 30d"),
    "independent_after": (str, "a time such as 15m"),
    "debounce": (int, "a whole number"),
    "shortest_alarm": (Real, "a number of seconds"),
}
_TIMES = ("false_alarms_per", "independent_after")
_OF_MACHINE: dict[str, tuple[Any, str]] = {
    "name": (str, "a text"),
    "scorer": (str, "a text"),
    "source": (str, "a text"),
    "rate": (int, "a whole number of Hz"),
    "format": (str, "a text"),
    "speed": (Real, "a number"),
}
# What `[outputs]` may hold; as the options of `na-ssl watch` of the same names.
_OF_OUTPUTS: dict[str, tuple[Any, str]] = {
    "store": (str, "a folder"),
    "web": (str, "HOST:PORT"),
    "web_token_file": (str, "a file"),
    "webhook": (list, "a list of addresses"),
    "mqtt": (str, "HOST or HOST:PORT"),
    "mqtt_tls": (bool, "true or false"),
    "mqtt_user": (str, "a text"),
    "mqtt_password_file": (str, "a file"),
}
_PATHS_OF_OUTPUTS = ("store", "web_token_file", "mqtt_password_file")
_OF_WATCH: dict[str, tuple[Any, str]] = {"state": (str, "a text"), "device": (str, "a text")}


@dataclass(frozen=True)
class MachineConfiguration:
    """One `[[machine]]`: its settings, its scorer and its source, as `open_source` takes them."""

    settings: MonitorSettings
    scorer: str
    source: str
    rate: int | None = None
    sample_format: str | None = None
    speed: float = 0.0


@dataclass(frozen=True)
class WatchConfiguration:
    """A whole `watch.toml`.

    Attributes:
        machines: at least one, of different names.
        state: the file that keeps the evidence; `None` for none.
        device: of the models; `None` for the best there is.
        outputs: who is told, keys as the options of `na-ssl watch`, `store` and files as paths.
    """

    machines: tuple[MachineConfiguration, ...]
    state: Path | None = None
    device: str | None = None
    outputs: Mapping[str, Any] = field(default_factory=dict)


def read_configuration(path: Path) -> WatchConfiguration:
    """Read and check a file. Paths in it are relative to its folder; settings of `[watch]` hold for every machine.

    ```toml
    [watch]
    false_alarms_per = "30d"
    state = "watch-state.json"

    [[machine]]
    name = "pump 3"
    scorer = "scorers/pump-3"
    source = "device:USB Audio"
    ```

    Raises:
        ValueError: the file is no TOML, or a key is unknown, missing or of another type; the message names all of them.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} must be a TOML file: {error}") from error
    problems = [f"the unknown table or key {name!r}" for name in content if name not in ("watch", "machine", "outputs")]
    common = content.get("watch", {})
    listed = content.get("machine", [])
    outputs = content.get("outputs", {})
    are_tables = isinstance(listed, list) and all(isinstance(one, dict) for one in [common, outputs, *listed])
    if not are_tables:
        raise ValueError(f"{path} must have a table [watch] and tables [[machine]].")
    if not listed:
        problems.append("no [[machine]]")
    problems += _problems(common, _SETTINGS | _OF_WATCH, "[watch]")
    problems += _problems(outputs, _OF_OUTPUTS, "[outputs]")
    for number, machine in enumerate(listed):
        where = f"[[machine]] {number + 1}"
        problems += _problems(machine, _SETTINGS | _OF_MACHINE, where)
        problems += [f"no {name!r} in {where}" for name in ("name", "scorer", "source") if name not in machine]
    names = [one.get("name") for one in listed]
    problems += [
        f"the name {name!r} {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    if problems:
        raise ValueError(f"{path} has {'; '.join(problems)}.")
    folder = path.parent
    return WatchConfiguration(
        machines=tuple(_machine(common | machine, folder) for machine in listed),
        state=folder / common["state"] if "state" in common else None,
        device=common.get("device"),
        outputs={key: folder / value if key in _PATHS_OF_OUTPUTS else value for key, value in outputs.items()},
    )


def _problems(table: Mapping[str, Any], known: Mapping[str, tuple[Any, str]], where: str) -> list[str]:
    found = []
    for key, value in table.items():
        if key not in known:
            found.append(f"the unknown key {key!r} in {where}")
        elif not isinstance(value, known[key][0]) or (isinstance(value, bool) and known[key][0] is not bool):
            found.append(f"{key} = {value!r} in {where}, which must be {known[key][1]}")
        elif key in _TIMES:
            try:
                parse_duration(value)
            except ValueError:
                found.append(f"{key} = {value!r} in {where}, which must be {known[key][1]}")
    return found


def _machine(table: Mapping[str, Any], folder: Path) -> MachineConfiguration:
    own = {name: table[name] for name in {one.name for one in fields(MonitorSettings)} & set(table)}
    own |= {key: parse_duration(own[key]) for key in _TIMES if key in own}
    source = table["source"]
    is_path = source != "-" and "://" not in source and source != "device" and not source.startswith("device:")
    scorer = folder / table["scorer"]
    return MachineConfiguration(
        settings=MonitorSettings(**own),
        scorer=str(scorer) if scorer.exists() else table["scorer"],
        source=str(folder / source) if is_path else source,
        rate=table.get("rate"),
        sample_format=table.get("format"),
        speed=float(table.get("speed", 0.0)),
    )
