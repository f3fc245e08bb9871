"""Tell other systems of events: MQTT, webhooks, Prometheus."""
