"""Publish states and events to an MQTT broker, so that Home Assistant finds the machines by itself."""

import json
import re
import ssl
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers.utils import logging

from ..results import STATES, AlarmEvent, WatchedMachine, WindowResult

logger = logging.get_logger(__name__)

_TIMEOUT_S = 10.0
_ONLINE, _OFFLINE = "online", "offline"
_AT_LEAST_ONCE = 1


@dataclass(frozen=True)
class Broker:
    """How an MQTT broker is reached.

    Attributes:
        host: name or address.
        port: 8883 with TLS, 1883 without, where it is None.
        tls: whether the connection is encrypted, and the broker's certificate checked.
        ca_file: certificates that are trusted, where they are not those of the system.
        username, password: as the broker asks for them.
        topic: the first level of all topics.
        discovery: the topic under which Home Assistant looks for devices; None publishes nothing there.
        client_id: unique among the clients of the broker; the broker makes one where it is None.
    """

    host: str
    port: int | None = None
    tls: bool = False
    ca_file: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    topic: str = "na-ssl"
    discovery: str | None = "homeassistant"
    client_id: str | None = None

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError(f"the host of the broker must be a name or an address, got {self.host!r}")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"the port of the broker must be from 1 to 65535, got {self.port}")
        for name in ("topic", "discovery"):
            topic = getattr(self, name)
            if topic is not None and (not topic or re.search(r"[+#\0]", topic) or topic.strip("/") != topic):
                raise ValueError(f"{name} must be an MQTT topic without +, # and slashes at its ends, got {topic!r}")


class Mqtt:
    """A listener that publishes the newest window of each machine, and a destination that publishes events.

    Topics, below `topic`: `status` ("online", or "offline" by the last will), `MACHINE/state` (the newest window as
    JSON, retained) and `MACHINE/event` (events, at least once). The broker may be down at any time: the client connects
    again by itself; states of that time are lost, events wait in the store.

    Args:
        broker: how it is reached.

    Raises:
        ValueError: paho-mqtt is not installed, or the certificates cannot be used.
    """

    def __init__(self, broker: Broker) -> None:
        try:
            import paho.mqtt.client as paho
        except ImportError as error:
            raise ValueError("MQTT needs paho-mqtt: pip install 'na-ssl-hf[watch]'") from error
        self._broker = broker
        self._machines: dict[str, WatchedMachine] = {}
        self._lock = threading.Lock()
        port = broker.port or (8883 if broker.tls else 1883)
        self.name = f"mqtt://{broker.host}:{port}/{broker.topic}"
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=broker.client_id or "")
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password)
        if broker.tls:
            client.tls_set_context(_tls_context(broker.ca_file))
        client.will_set(self._status_topic, _OFFLINE, qos=_AT_LEAST_ONCE, retain=True)
        client.reconnect_delay_set(1, 60)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        # A state that cannot be published is replaced by the next one, so none waits in the client.
        client.max_queued_messages_set(100)
        self._client = client
        client.connect_async(broker.host, port, keepalive=30)
        client.loop_start()

    def opened(self, machine: WatchedMachine) -> None:
        """Tell Home Assistant of a machine."""
        with self._lock:
            self._machines[machine.name] = machine
        if self._client.is_connected():
            self._announce(machine)

    def window(self, result: WindowResult, samples: np.ndarray) -> None:
        """Publish the newest window of a machine, unless the broker is down."""
        if self._client.is_connected():
            topic = f"{self._broker.topic}/{_level(result.machine)}/state"
            self._client.publish(topic, json.dumps(result.to_dict()), retain=True)

    def event(self, event: AlarmEvent) -> None:
        """Do nothing: events come through the queue of the store, see `send`."""

    def send(self, content: dict[str, Any]) -> None:
        """Publish an event, and wait until the broker has it.

        Raises:
            OSError: the broker cannot be reached.
        """
        if not self._client.is_connected():
            raise OSError("the broker is not connected")
        topic = f"{self._broker.topic}/{_level(content['machine'])}/event"
        published = self._client.publish(topic, json.dumps(content), qos=_AT_LEAST_ONCE)
        try:
            published.wait_for_publish(_TIMEOUT_S)
            arrived = published.is_published()
        except (RuntimeError, ValueError) as error:
            raise OSError(f"the broker did not take the message: {error}") from error
        if not arrived:
            raise OSError(f"the broker did not answer within {_TIMEOUT_S:g} s")

    def close(self) -> None:
        """Say goodbye: the status becomes "offline"."""
        if self._client.is_connected():
            farewell = self._client.publish(self._status_topic, _OFFLINE, qos=_AT_LEAST_ONCE, retain=True)
            try:
                farewell.wait_for_publish(2.0)
            except (RuntimeError, ValueError):
                logger.debug(f"{self.name} went away before the farewell")
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def _status_topic(self) -> str:
        return f"{self._broker.topic}/status"

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            logger.warning(f"{self.name} refuses the connection: {reason}")
            return
        client.publish(self._status_topic, _ONLINE, qos=_AT_LEAST_ONCE, retain=True)
        with self._lock:
            machines = list(self._machines.values())
        for machine in machines:
            self._announce(machine)

    def _disconnected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            logger.warning(f"{self.name} is not connected any more ({reason}); trying again")

    def _announce(self, machine: WatchedMachine) -> None:
        if self._broker.discovery is None:
            return
        topic = f"{self._broker.discovery}/device/{_level(self._broker.topic)}_{_level(machine.name)}/config"
        self._client.publish(topic, json.dumps(self._discovery(machine)), qos=_AT_LEAST_ONCE, retain=True)

    def _discovery(self, machine: WatchedMachine) -> dict[str, Any]:
        """Return the device discovery of Home Assistant (MQTT integration, 2024.11 and later)."""
        identity = f"{_level(self._broker.topic)}_{_level(machine.name)}"
        state_topic = f"{self._broker.topic}/{_level(machine.name)}/state"

        def entity(key: str, name: str, template: str, **more: Any) -> dict[str, Any]:
            fixed = {"unique_id": f"{identity}_{key}", "name": name, "state_topic": state_topic}
            return {"platform": "sensor", **fixed, "value_template": template, **more}

        return {
            "device": {"identifiers": [identity], "name": machine.name, "manufacturer": "na_ssl_hf"},
            "origin": {"name": "na-ssl watch"},
            "availability_topic": self._status_topic,
            "components": {
                "state": entity("state", "State", "{{ value_json.state }}", device_class="enum", options=list(STATES)),
                "score": entity("score", "Anomaly score", "{{ value_json.score }}", state_class="measurement"),
                "evidence": entity("evidence", "Evidence", "{{ value_json.evidence }}", state_class="measurement"),
                "alarm": entity(
                    "alarm",
                    "Alarm",
                    "{{ 'ON' if value_json.state == 'alarm' else 'OFF' }}",
                    platform="binary_sensor",
                    device_class="problem",
                ),
            },
        }


def _level(name: str) -> str:
    """Return a name as one level of a topic."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"the certificates of {ca_file} cannot be used: {error}") from error
