"""The import-linter contract of this project: which module may import which, edge by edge.

import-linter's own contract types forbid; a list of what is forbidden is out of date with the next module. This one
allows: every import from a module of `importers` to a module of `imports` breaks the contract, but for the `except`
patterns. Patterns are shell globs over dotted names; "stdlib" stands for the whole standard library.
"""

import sys
from fnmatch import fnmatchcase
from typing import Any

from importlinter import Contract, ContractCheck, fields, output


def _matches(module: str, patterns: Any) -> bool:
    return any(
        module.partition(".")[0] in sys.stdlib_module_names if pattern == "stdlib" else fnmatchcase(module, pattern)
        for pattern in patterns
    )


class DirectImports(Contract):
    """`importers` may not import `imports`, unless the importer is in `except_importers` or the imported module in
    `except_imports`."""

    importers = fields.ListField(fields.StringField())
    imports = fields.ListField(fields.StringField(), default=["*"])
    except_importers = fields.ListField(fields.StringField(), default=[])
    except_imports = fields.ListField(fields.StringField(), default=[])

    def check(self, graph: Any, verbose: bool) -> ContractCheck:
        importers = [name for name in sorted(graph.modules) if _matches(name, self.importers)]
        found = []
        for importer in importers:
            if _matches(importer, self.except_importers):
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                if _matches(imported, self.imports) and not _matches(imported, self.except_imports):
                    details = graph.get_import_details(importer=importer, imported=imported)
                    found.append((importer, imported, details[0]["line_number"] if details else 0))
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported, line in check.metadata["found"]:
            output.print_error(f"{importer} imports {imported} (line {line})")
