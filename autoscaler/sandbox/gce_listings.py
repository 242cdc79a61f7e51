"""Pages of the sandbox's Compute Engine: of one place, or of all places at once (aggregated).

An aggregated page names every scope: those without a result on the page, and those that could not be reached, by a
warning instead of items. Items are rendered JSON, so that a page is joined, not encoded anew.
"""

import json
from collections.abc import Mapping, Sequence

from autoscaler.sandbox.gce_behaviour import GceBehaviour
from autoscaler.sandbox.gce_wire import GceError, Json, PageRequest


class Listings:
    """`base` is the address up to "/compute/v1/projects/P/"."""

    def __init__(self, behaviour: GceBehaviour) -> None:
        self._behaviour = behaviour

    def check_page(self, asked: PageRequest) -> None:
        """Raises GceError(503) for the page that is to fail; a token counts the pages before it."""
        if self._behaviour.failing_page == asked.number:
            raise GceError(503, "backendError", "Internal error. Please try again or contact Google Support.")

    def check_reach(self, query: Mapping[str, str]) -> None:
        """Raises GceError(503) where a zone that cannot be reached fails an aggregated listing."""
        is_partial = query.get("returnPartialSuccess", "false") == "true"
        if self._behaviour.unreachable and self._behaviour.fails_when_unreachable and not is_partial:
            zones = ", ".join(sorted(self._behaviour.unreachable))
            raise GceError(503, "backendError", f"Zones {zones} are unreachable. Please try again.")

    def aggregated(
        self,
        collection: str,
        by_scope: Mapping[str, Sequence[bytes]],
        *,
        kind: str,
        base: str,
        following: str,
    ) -> bytes:
        """One page; `by_scope` has every scope of the project."""
        project = base.rstrip("/").rpartition("/")[2]
        items: list[bytes] = []
        unreached: list[str] = []
        for scope, rows in by_scope.items():
            if scope.removeprefix("zones/") in self._behaviour.unreachable:
                unreached.append(scope)
                shown = _warning(scope, "UNREACHABLE", f"The scope '{scope}' is unreachable.")
            elif rows:
                shown = b'{"%s": [%s]}' % (collection.encode(), b", ".join(rows))
            else:
                shown = _warning(scope, "NO_RESULTS_ON_PAGE", f"There are no results for scope '{scope}' on this page.")
            items.append(b'"%s": %s' % (scope.encode(), shown))
        head: Json = {
            "kind": f"compute#{kind}",
            "id": f"projects/{project}/aggregated/{collection}",
            "selfLink": f"{base}aggregated/{collection}",
        }
        if unreached:
            head["unreachables"] = unreached
        return _with_items(head, b"{%s}" % b", ".join(items), following)

    def of_place(self, path: str, rows: Sequence[bytes], *, kind: str, base: str, following: str) -> bytes:
        """One page of a listing at `path` below the project."""
        project = base.rstrip("/").rpartition("/")[2]
        head: Json = {"kind": f"compute#{kind}", "id": f"projects/{project}/{path}", "selfLink": base + path}
        return _with_items(head, b"[%s]" % b", ".join(rows), following)


def _with_items(head: Json, items: bytes, following: str) -> bytes:
    if following:
        head["nextPageToken"] = following
    return json.dumps(head).encode()[:-1] + b', "items": ' + items + b"}"


def _warning(scope: str, code: str, message: str) -> bytes:
    warning = {"code": code, "message": message, "data": [{"key": "scope", "value": scope}]}
    return json.dumps({"warning": warning}).encode()
