"""The routes, one family a file."""

from paddle_ds_serving.routes import chat, completions, generate, health, models, monitoring, quality, tokens

ALL = (
    chat.blueprint,
    completions.blueprint,
    generate.blueprint,
    health.blueprint,
    models.blueprint,
    monitoring.blueprint,
    quality.blueprint,
    tokens.blueprint,
)
