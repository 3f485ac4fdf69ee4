"""The routes, one family a file."""

from paddle_ds_serving.routes import (
    admin,
    chat,
    completions,
    feedback,
    generate,
    health,
    models,
    monitoring,
    openapi,
    quality,
    tokens,
)

ALL = (
    admin.blueprint,
    chat.blueprint,
    completions.blueprint,
    feedback.blueprint,
    generate.blueprint,
    health.blueprint,
    models.blueprint,
    monitoring.blueprint,
    openapi.blueprint,
    quality.blueprint,
    tokens.blueprint,
)
