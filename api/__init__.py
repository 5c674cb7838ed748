"""The HTTP API: routes, schemas, security. Imports domain, db, settings and workflow classes; never a cloud."""
