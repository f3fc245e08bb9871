"""What a window's result says in JSON, and the identity of events."""

import json

from na_ssl_hf.watch.results import WindowResult, event_id


def test_a_window_is_one_json_line_whose_time_is_the_end_of_the_window():
    result = WindowResult("pump", 2.5, 12.5, 1000.0, 0.25, 0.04, "watch", 3.0, 0.3, resume={"statistic": 1.0})
    line = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (line["time"], line["unix_time"], line["score"], line["p_value"]) == (12.5, 1012.5, 0.25, 0.04)
    assert line["state"] == "watch"


def test_the_identity_of_an_event_depends_on_machine_kind_and_beginning_alone():
    first = event_id("pump", "alarm", 1000.0)
    assert first == event_id("pump", "alarm", 1000.0)
    others = {event_id("fan", "alarm", 1000.0), event_id("pump", "drift", 1000.0), event_id("pump", "alarm", 1002.5)}
    assert len(others | {first}) == 4
