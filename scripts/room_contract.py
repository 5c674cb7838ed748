"""An import-linter contract that reads like the "May import" column of the architecture's table.

import-linter's own contract types name what is *forbidden*, so a new room or a new dependency would be allowed
everywhere until somebody thinks of forbidding it. This one names what is allowed, and refuses everything else.
"""

from __future__ import annotations

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class RoomContract(Contract):
    """`room` imports itself, the standard library and `may_import`, and nothing else.

    Options: `room`, a list of modules (each with its descendants); `may_import`, first-party modules (with their
    descendants) and top-level third-party packages. Only direct imports count, also those inside functions and
    under `TYPE_CHECKING`: what an allowed module imports in its turn is that module's own contract. A package above
    an allowed module may be named too, since Python imports it anyway.
    """

    type_name = "room"

    # import-linter replaces each field by its parsed value on the instance.
    room: list[str] = fields.ListField(subfield=fields.StringField())  # type: ignore[assignment]
    may_import: list[str] = fields.ListField(  # type: ignore[assignment]
        subfield=fields.StringField(), required=False, default=[]
    )

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Compare every direct import with the list; `metadata["illegal"]` holds (importer, line, imported)."""
        allowed = [*self.room, *self.may_import]
        illegal: list[tuple[str, int, str]] = []
        for importer in sorted(graph.modules):
            if not _within(importer, self.room):
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                if (
                    imported.partition(".")[0] in sys.stdlib_module_names
                    or _within(imported, allowed)
                    or any(name.startswith(f"{imported}.") for name in allowed)
                ):
                    continue
                details = graph.get_import_details(importer=importer, imported=imported)
                illegal.extend((importer, detail["line_number"], imported) for detail in details)
        return ContractCheck(kept=not illegal, metadata={"illegal": illegal})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line for each import that is not on the list."""
        for importer, line, imported in check.metadata["illegal"]:
            output.print_error(f"{importer} (l.{line}) may not import {imported}", bold=False)
        output.new_line()


def _within(module: str, roots: list[str]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)
