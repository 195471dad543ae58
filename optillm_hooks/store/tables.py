"""The tables. Their names have a prefix, because the database may be shared with others."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata: Final = MetaData()

_Id = BigInteger().with_variant(Integer, "sqlite")


def _namespaced(on_delete: str = "CASCADE") -> Column[int]:
    return Column(
        "namespace_id", _Id, ForeignKey("optillm_namespace.id", ondelete=on_delete), nullable=False
    )


store: Final = Table("optillm_store", metadata, Column("version", Integer, nullable=False))
"""One row: the number of migrations that have run."""

namespace: Final = Table(
    "optillm_namespace",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("scope", String(16), nullable=False),
    Column("owner", Text, nullable=False),
    UniqueConstraint("scope", "owner"),
)

note: Final = Table(
    "optillm_note",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    _namespaced(),
    Column("digest", String(64), nullable=False),
    Column("source", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, index=True),
    Column("embedding", LargeBinary),
    UniqueConstraint("namespace_id", "digest"),
    Index("optillm_note_newest", "namespace_id", "created_at", "id"),
)

cached_text: Final = Table(
    "optillm_cached_text",
    metadata,
    Column("id", _Id, primary_key=True),
    _namespaced(),
    Column("digest", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, index=True),
    UniqueConstraint("namespace_id", "digest"),
    Index("optillm_cached_text_newest", "namespace_id", "created_at", "id"),
)

strategy: Final = Table(
    "optillm_strategy",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    _namespaced(),
    Column("digest", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("namespace_id", "digest"),
)
"""`version` is the number of the current version."""

strategy_version: Final = Table(
    "optillm_strategy_version",
    metadata,
    Column("id", _Id, primary_key=True),
    Column(
        "strategy_id",
        _Id,
        ForeignKey("optillm_strategy.id", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("version", Integer, nullable=False),
    Column("applies_to", Text, nullable=False),
    Column("keywords", Text, nullable=False),
    Column("steps", Text, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("rewarded", Integer, nullable=False),
    Column("reward", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("last_used", Double),
    UniqueConstraint("strategy_id", "version"),
)

strategy_use: Final = Table(
    "optillm_strategy_use",
    metadata,
    Column("id", _Id, primary_key=True),
    _namespaced(),
    Column(
        "version_id",
        _Id,
        ForeignKey("optillm_strategy_version.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("request", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Index("optillm_strategy_use_of_request", "namespace_id", "request"),
)
"""Uses that wait for a reward. A reward deletes them, so that each counts once."""
