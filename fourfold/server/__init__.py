"""HTTP: the OpenAI-compatible API and its neighbours, metering, metrics and the page, over the engine."""
