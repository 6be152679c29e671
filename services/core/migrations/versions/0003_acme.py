"""ACME: what finalizing and validating need to survive a killed worker, and the key of nonces."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the request and the leases, and the secret that every replica seals nonces with."""
    op.add_column("acme_order", sa.Column("csr", sa.LargeBinary))
    op.add_column("acme_order", sa.Column("processing_until", sa.String(27)))
    op.create_index(
        "ix_acme_order_account_id_created_at_id", "acme_order", ["account_id", "created_at", "id"]
    )
    op.drop_index("ix_acme_order_account_id", "acme_order")
    op.create_index("ix_acme_order_authority_id_serial", "acme_order", ["authority_id", "serial"])
    op.create_index("ix_acme_account_created_at", "acme_account", ["created_at"])
    op.add_column("acme_challenge", sa.Column("processing_until", sa.String(27)))
    op.create_table(
        "acme_secret",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("id = 1", name="ck_acme_secret_single"),
        sa.PrimaryKeyConstraint("id", name="pk_acme_secret"),
    )
