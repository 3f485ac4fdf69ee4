"""Parts of ``tools/bench_peers.py``. ``worker*.py`` also run in the peers' environment, so they import nothing of Paddle-DS."""
