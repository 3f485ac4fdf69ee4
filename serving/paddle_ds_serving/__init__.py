"""The HTTP application: OpenAI's API, ``/generate``, health and metrics, over an engine in another process."""
