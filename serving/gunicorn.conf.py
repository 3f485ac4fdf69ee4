"""Gunicorn's configuration, for `gunicorn -c serving/gunicorn.conf.py` in a checkout; what it says is in the package."""

from paddle_ds_serving.gunicorn_conf import *  # noqa: F403
