"""Messages of a watch: a real broker, a real web server, and both of them down at times."""

import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from watched import event, machine, sound, window

from na_ssl_hf.watch.messages import delivery
from na_ssl_hf.watch.messages.delivery import Delivery
from na_ssl_hf.watch.messages.mqtt import Broker, Mqtt
from na_ssl_hf.watch.messages.prometheus import Prometheus
from na_ssl_hf.watch.messages.secret import read_secret
from na_ssl_hf.watch.messages.webhook import Webhook
from na_ssl_hf.watch.store import WatchStore

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
DASHBOARD = Path(__file__).parents[2] / "examples" / "deploy" / "grafana.json"
LONG = 60.0  # s, only so that a hanging test ends


def wait_until(condition, what: str, longest: float = LONG):
    deadline = time.monotonic() + longest
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {longest:g} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(delivery, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(delivery, "_LONGEST_PAUSE_S", 0.2)


class Receiver:
    """A web server that keeps what it is sent, and answers as it is told."""

    def __init__(self, port: int = 0):
        self.received: list[tuple[dict, dict]] = []
        self.answer = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((dict(self.headers), {"body": body}))
                self.send_response(receiver.answer)
                if receiver.answer == 302:
                    self.send_header("Location", "http://127.0.0.1:1/stolen")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def contents(self) -> list[dict]:
        return [json.loads(body["body"]) for _headers, body in self.received]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


def kept_events(tmp_path, name: str, count: int = 3) -> WatchStore:
    store = WatchStore(tmp_path / "kept", destinations=[name])
    store.opened(machine())
    for index in range(count):
        store.window(window(index, events=(event(start=float(index)),)), sound(0))
    return store


def test_a_webhook_gets_each_event_once_and_in_order(tmp_path, receiver):
    hook = Webhook(f"http://127.0.0.1:{receiver.port}/alarms?key=1", token="t0ken", signing_key="secret")
    assert hook.name == f"webhook http://127.0.0.1:{receiver.port}/alarms"
    store = kept_events(tmp_path, hook.name)
    deliveries = Delivery(store, [hook])
    wait_until(lambda: not store.unsent_messages(hook.name), "delivery")
    deliveries.close()
    starts = [content["start"] for content in receiver.contents()]
    assert starts == sorted(starts)
    assert len(starts) == 3
    headers, body = receiver.received[0]
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers["X-Na-Ssl-Signature"] == hmac.new(b"secret", body["body"], hashlib.sha256).hexdigest()
    assert headers["Idempotency-Key"] == f"{receiver.contents()[0]['id']}-begin"
    again = Delivery(WatchStore(store.folder), [hook])  # a restart sends nothing twice
    again.close()
    assert len(receiver.received) == 3


@pytest.mark.parametrize("answer", [302, 404, 500])
def test_a_webhook_that_refuses_is_tried_again(tmp_path, receiver, answer):
    receiver.answer = answer
    hook = Webhook(f"http://127.0.0.1:{receiver.port}")
    store = kept_events(tmp_path, hook.name, count=1)
    deliveries = Delivery(store, [hook])
    wait_until(lambda: len(receiver.received) >= 3, "three attempts")
    receiver.answer = 204
    wait_until(lambda: not store.unsent_messages(hook.name), "delivery")
    deliveries.close()
    assert len({content["id"] for content in receiver.contents()}) == 1


def test_a_webhook_that_is_down_gets_its_messages_after_a_restart(tmp_path):
    port = free_port()
    hook = Webhook(f"http://127.0.0.1:{port}", timeout=1.0)
    store = kept_events(tmp_path, hook.name)
    deliveries = Delivery(store, [hook])
    wait_until(lambda: store.unsent_messages(hook.name)[0].attempts > 0, "an attempt")
    deliveries.close()
    assert len(store.unsent_messages(hook.name)) == 3
    receiver = Receiver(port)
    restarted = WatchStore(store.folder)
    deliveries = Delivery(restarted, [hook])
    wait_until(lambda: not restarted.unsent_messages(hook.name), "delivery")
    deliveries.close()
    receiver.close()
    assert len(receiver.received) == 3


@pytest.mark.parametrize("url", ["ftp://host/x", "host:80", "http://", ""])
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="a webhook must have an address"):
        Webhook(url)


class MosquittoBroker:
    """A broker of our own on a free port, with a listener that keeps all messages."""

    def __init__(self, folder, port: int | None = None, password: str | None = None):
        self.port = port or free_port()
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", f"allow_anonymous {str(not password).lower()}"]
        if os.geteuid() == 0:
            lines.append("user root")  # it would give up root's rights, and with them the folder of the test
        if password:
            file = folder / "passwords"
            file.touch(mode=0o600)
            passwords = shutil.which("mosquitto_passwd", path="/usr/bin:/usr/local/bin")
            subprocess.run([passwords, "-b", str(file), "watch", password], check=True, capture_output=True)
            lines.append(f"password_file {file}")
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        command = [MOSQUITTO, "-c", str(folder / "mosquitto.conf")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, "the start of the broker")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def listen(self, password: str | None = None) -> list[tuple[str, str]]:
        import paho.mqtt.client as paho

        heard: list[tuple[str, str]] = []
        subscribed = threading.Event()
        client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        if password:
            client.username_pw_set("watch", password)
        client.on_connect = lambda *_: client.subscribe("#", qos=1)
        client.on_subscribe = lambda *_: subscribed.set()
        client.on_message = lambda _client, _data, message: heard.append((message.topic, message.payload.decode()))
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        assert subscribed.wait(LONG)
        return heard

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def broker(tmp_path):
    pytest.importorskip("paho.mqtt.client")
    broker = MosquittoBroker(tmp_path)
    yield broker
    broker.kill()


def of_topic(heard, topic):
    return [payload for name, payload in heard if name == topic]


@needs_broker
def test_the_broker_gets_states_events_discovery_and_a_farewell(tmp_path, broker):
    heard = broker.listen()
    mqtt = Mqtt(Broker("127.0.0.1", broker.port))
    mqtt.opened(machine("pump 1"))
    store = WatchStore(tmp_path / "kept", destinations=[mqtt.name])
    store.opened(machine("pump 1"))
    wait_until(mqtt._client.is_connected, "the connection")
    alarm = window(0, "pump 1", events=(event("pump 1"),), state="alarm")
    store.window(alarm, sound(0))
    mqtt.window(alarm, sound(0))
    deliveries = Delivery(store, [mqtt])
    wait_until(lambda: of_topic(heard, "na-ssl/pump_1/event"), "the event")
    deliveries.close()
    wait_until(lambda: of_topic(heard, "na-ssl/status") == ["online", "offline"], "the farewell")
    [told] = of_topic(heard, "na-ssl/pump_1/event")
    assert json.loads(told)["phase"] == "begin"
    [state] = of_topic(heard, "na-ssl/pump_1/state")
    assert json.loads(state)["state"] == "alarm"
    found = json.loads(of_topic(heard, "homeassistant/device/na-ssl_pump_1/config")[0])
    assert found["device"]["name"] == "pump 1"
    assert found["components"]["alarm"]["platform"] == "binary_sensor"
    topics = {component["state_topic"] for component in found["components"].values()}
    assert topics == {"na-ssl/pump_1/state"}
    assert len({component["unique_id"] for component in found["components"].values()}) == 4


@needs_broker
def test_a_broker_that_is_down_gets_every_event_when_it_is_back(tmp_path, broker):
    mqtt = Mqtt(Broker("127.0.0.1", broker.port, discovery=None))
    mqtt._client.reconnect_delay_set(1, 1)
    wait_until(mqtt._client.is_connected, "the connection")
    broker.kill()
    store = kept_events(tmp_path, mqtt.name)
    deliveries = Delivery(store, [mqtt])
    wait_until(lambda: store.unsent_messages(mqtt.name)[0].attempts > 0, "an attempt")
    again = MosquittoBroker(tmp_path, broker.port)
    heard = again.listen()
    wait_until(lambda: not store.unsent_messages(mqtt.name), "delivery")
    deliveries.close()
    wait_until(lambda: len(of_topic(heard, "na-ssl/pump/event")) == 3, "the events")
    ids = [json.loads(payload)["id"] for payload in of_topic(heard, "na-ssl/pump/event")]
    assert len(set(ids)) == 3
    again.kill()


@needs_broker
def test_the_last_will_tells_of_a_killed_watch(broker):
    heard = broker.listen()
    code = (
        "import sys, time\nfrom na_ssl_hf.watch.messages.mqtt import *\n"
        "mqtt = Mqtt(Broker('127.0.0.1', int(sys.argv[1])))\ntime.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(broker.port)])
    wait_until(lambda: of_topic(heard, "na-ssl/status") == ["online"], "the greeting")
    process.kill()
    process.wait()
    wait_until(lambda: of_topic(heard, "na-ssl/status") == ["online", "offline"], "the last will")


@needs_broker
def test_a_broker_with_a_password(tmp_path):
    pytest.importorskip("paho.mqtt.client")
    broker = MosquittoBroker(tmp_path, password="s3cret")
    settings = Broker("127.0.0.1", broker.port, username="watch", password="s3cret")
    assert "s3cret" not in repr(settings)
    mqtt = Mqtt(settings)
    wait_until(mqtt._client.is_connected, "the connection")
    mqtt.close()
    wrong = Mqtt(Broker("127.0.0.1", broker.port, username="watch", password="wrong"))
    with pytest.raises(OSError, match="not connected"):
        wrong.send({"machine": "pump"})
    wrong.close()
    broker.kill()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": ""}, "host of the broker"),
        ({"host": "x", "port": 0}, "port of the broker must be from 1 to 65535, got 0"),
        ({"host": "x", "topic": "a/#"}, "topic must be an MQTT topic"),
        ({"host": "x", "discovery": "/a"}, "discovery must be an MQTT topic"),
    ],
)
def test_brokers_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        Broker(**settings)


def test_certificates_that_are_none(tmp_path):
    pytest.importorskip("paho.mqtt.client")
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ValueError, match=r"certificates of .*ca\.pem cannot be used"):
        Mqtt(Broker("127.0.0.1", tls=True, ca_file=str(tmp_path / "ca.pem")))


def test_prometheus_figures():
    parser = pytest.importorskip("prometheus_client.parser")
    prometheus = Prometheus()
    prometheus.opened(machine())
    prometheus.window(window(0), sound(0))
    prometheus.window(window(1, state="alarm", skipped=2, score=None, p_value=None), sound(1))
    prometheus.event(event())
    prometheus.event(event(end=9.0))
    samples = {
        (sample.name, *sorted(sample.labels.items())[1:]): sample.value
        for family in parser.text_string_to_metric_families(prometheus.text().decode())
        for sample in family.samples
        if "created" not in sample.name
    }
    assert samples["na_ssl_windows_total",] == 2
    assert samples["na_ssl_skipped_windows_total",] == 2
    assert samples["na_ssl_state", ("state", "alarm")] == 1
    assert samples["na_ssl_state", ("state", "ok")] == 0
    assert samples["na_ssl_score",] != samples["na_ssl_score",]  # not a number: the window has no score
    assert samples["na_ssl_level_db", ("microphone", "far")] == -30
    events = [value for (name, *_), value in samples.items() if name == "na_ssl_events_total"]
    assert events == [1]


def test_the_dashboard_asks_for_figures_that_there_are():
    parser = pytest.importorskip("prometheus_client.parser")
    prometheus = Prometheus()
    prometheus.opened(machine())
    prometheus.window(window(0), sound(0))
    prometheus.event(event())
    offered: dict[str, dict[str, set[str]]] = {}
    for family in parser.text_string_to_metric_families(prometheus.text().decode()):
        for sample in family.samples:
            labels = offered.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    asked.append(variables["machine"]["definition"])
    used = set()
    for expression in asked:
        assert expression.count("(") == expression.count(")")
        names = re.findall(r"na_ssl_\w+", expression)
        assert names
        for name, labels in re.findall(r"(na_ssl_\w+)(?:\{([^}]*)\})?", expression):
            assert name in offered
            for label, how, value in re.findall(r'(\w+)(=~?)"([^"]*)"', labels):
                assert value in offered[name][label] or (how == "=~" and value.removeprefix("$") in variables)
        used |= set(names)
        grouped = {label for names in re.findall(r"by \(([^)]*)\)", expression) for label in names.split(", ")}
        shown = {
            label
            for panel in dashboard["panels"]
            for target in panel["targets"]
            if target["expr"] == expression
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        }
        for label in grouped | shown:
            assert all(label in offered[name] for name in names)
    figures = {name for name in offered if "created" not in name}
    assert figures - used == {"na_ssl_windows_total"}  # which a description names
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("WATCH_TOKEN", " abc\n")
    (tmp_path / "token").write_text("from file\n")
    (tmp_path / "empty").write_text("\n")
    assert read_secret("the token", "WATCH_TOKEN") == "abc"
    assert read_secret("the token", file=tmp_path / "token") == "from file"
    assert read_secret("the token") is None
    for arguments, message in [
        (("WATCH_TOKEN", tmp_path / "token"), "must come from one place"),
        (("NOT_SET", None), "NOT_SET, which is not set"),
        ((None, tmp_path / "empty"), "must not be empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_secret("the token", *arguments)
    with pytest.raises(OSError):
        read_secret("the token", file=tmp_path / "absent")
