"""Traces of requests, for OpenTelemetry collectors."""
