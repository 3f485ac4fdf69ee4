"""Parts of ``tools/bench_ipc.py``: one scripted engine behind ZeroMQ frames and behind Gunicorn's dirty workers."""
