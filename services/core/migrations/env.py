"""Alembic's entry: runs the migrations on the connection that services.core.database hands over."""

from alembic import context

from services.core.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite cannot alter most of a table in place: alembic copies it instead
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
