"""Typed msgpack frames over ZeroMQ between HTTP workers and the engine process."""
