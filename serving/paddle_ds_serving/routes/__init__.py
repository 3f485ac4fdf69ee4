"""The routes, one family a file."""

from paddle_ds_serving.routes import chat, completions, generate, health, models, monitoring, tokens

ALL = (
    chat.blueprint,
    completions.blueprint,
    generate.blueprint,
    health.blueprint,
    models.blueprint,
    monitoring.blueprint,
    tokens.blueprint,
)
