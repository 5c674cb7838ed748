"""The memory: SQLModel tables, repositories, Alembic migrations. SQL lives in repositories alone."""
