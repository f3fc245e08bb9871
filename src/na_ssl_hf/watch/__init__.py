"""Watch machines day and night: sound from a source, a score for every window, alarms that one can live with.

`results.py` holds what the parts tell each other; a store, messages and a page are listeners of a monitor.
"""
