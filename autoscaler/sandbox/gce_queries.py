"""Methods that only read: the catalogue, listings, operations, and what a caller is allowed to do."""

import json
from collections.abc import Callable, Sequence

from autoscaler.sandbox.gce_behaviour import GceBehaviour
from autoscaler.sandbox.gce_body import read_json
from autoscaler.sandbox.gce_catalogue import CatalogueViews, GceCatalogue
from autoscaler.sandbox.gce_filter import label_asked, parse
from autoscaler.sandbox.gce_ground import Ground
from autoscaler.sandbox.gce_listings import Listings
from autoscaler.sandbox.gce_method import Ask, Method
from autoscaler.sandbox.gce_operations import Operation, Operations
from autoscaler.sandbox.gce_records import Record, Records
from autoscaler.sandbox.gce_wire import Json, PageRequest, invalid, not_found


class Queries:
    def __init__(
        self,
        catalogue: GceCatalogue,
        ground: Ground,
        records: Records,
        operations: Operations,
        *,
        behaviour: GceBehaviour,
        clock: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._ground = ground
        self._records = records
        self._operations = operations
        self._listings = Listings(behaviour)
        self._clock = clock

    def methods(self) -> Sequence[Method]:
        get, post = "GET", "POST"
        rows: tuple[tuple[str, str, str, str, Callable[[Ask], bytes], str | None], ...] = (
            ("projects.get", get, "", "projects.get", self._project, None),
            ("zones.list", get, "zones", "zones.list", self._zones, ""),
            ("zones.get", get, "zones/{zone}", "zones.get", self._zone, None),
            ("regions.list", get, "regions", "regions.list", self._regions, ""),
            ("regions.get", get, "regions/{region}", "regions.get", self._region, None),
            ("machineTypes.list", get, "zones/{zone}/machineTypes", "machineTypes.list", self._types, ""),
            ("machineTypes.aggregatedList", get, "aggregated/machineTypes", "machineTypes.list", self._all_types, ""),
            ("machineTypes.get", get, "zones/{zone}/machineTypes/{type}", "machineTypes.get", self._type, None),
            ("images.get", get, "global/images/{image}", "images.get", self._image, None),
            ("images.getFromFamily", get, "global/images/family/{family}", "images.getFromFamily", self._image, None),
            ("images.testIamPermissions", post, "global/images/{image}/testIamPermissions", "", self._test_image, None),
            ("subnetworks.get", get, "regions/{region}/subnetworks/{name}", "subnetworks.get", self._subnetwork, None),
            (
                *("subnetworks.testIamPermissions", post, "regions/{region}/subnetworks/{name}/testIamPermissions"),
                *("", self._test_subnetwork, None),
            ),
            ("instances.aggregatedList", get, "aggregated/instances", "instances.list", self._all_instances, ""),
            ("instances.list", get, "zones/{zone}/instances", "instances.list", self._instances, ""),
            (
                *("globalOperations.aggregatedList", get, "aggregated/operations", "globalOperations.list"),
                *(self._all_operations, ""),
            ),
            *self._operations_of("zone", "zones/{zone}"),
            *self._operations_of("region", "regions/{region}"),
            *self._operations_of("global", "global"),
        )
        return [
            Method(
                name=name,
                http=http,
                path=path,
                permission=f"compute.{permission}" if permission else "",
                serve=serve,
                on=on,
            )
            for name, http, path, permission, serve, on in rows
        ]

    def _operations_of(
        self, kind: str, scope: str
    ) -> list[tuple[str, str, str, str, Callable[[Ask], bytes], str | None]]:
        name, one = f"{kind}Operations", f"{scope}/operations/{{operation}}"
        return [
            (f"{name}.get", "GET", one, f"{name}.get", self.operation, None),
            (f"{name}.wait", "POST", f"{one}/wait", f"{name}.get", self.operation, one),
            (f"{name}.list", "GET", f"{scope}/operations", f"{name}.list", self._operation_list, ""),
        ]

    # -- catalogue ----------------------------------------------------------------------------------------------

    def _views(self, ask: Ask) -> CatalogueViews:
        return CatalogueViews(self._catalogue, ask.base, self._ground.quotas)

    def _project(self, ask: Ask) -> bytes:
        return _text(self._views(ask).project())

    def _zone(self, ask: Ask) -> bytes:
        return _text(self._views(ask).zone(ask.parts["zone"]))

    def _region(self, ask: Ask) -> bytes:
        return _text(self._views(ask).region(ask.parts["region"]))

    def _type(self, ask: Ask) -> bytes:
        return _text(self._views(ask).machine_type(ask.parts["zone"], ask.parts["type"]))

    def _image(self, ask: Ask) -> bytes:
        return _text(self._views(ask).image(ask.path))

    def _subnetwork(self, ask: Ask) -> bytes:
        return _text(self._views(ask).subnetwork(ask.path))

    def _test_image(self, ask: Ask) -> bytes:
        self._catalogue.image(ask.path.removesuffix("/testIamPermissions"))
        return _text(ask.allowed(read_json(ask.body)))

    def _test_subnetwork(self, ask: Ask) -> bytes:
        self._catalogue.subnetwork(ask.path.removesuffix("/testIamPermissions"))
        return _text(ask.allowed(read_json(ask.body)))

    def _zones(self, ask: Ask) -> bytes:
        views = self._views(ask)
        return self._list(ask, [views.zone(zone) for zone in self._catalogue.zones], "zoneList")

    def _regions(self, ask: Ask) -> bytes:
        views = self._views(ask)
        return self._list(ask, [views.region(region) for region in self._catalogue.regions], "regionList")

    def _types(self, ask: Ask) -> bytes:
        return self._list(ask, self._views(ask).machine_types(ask.parts["zone"]), "machineTypeList")

    def _all_types(self, ask: Ask) -> bytes:
        views = self._views(ask)
        rows = [(f"zones/{zone}", shown) for zone in self._catalogue.zones for shown in views.machine_types(zone)]
        return self._aggregate(ask, rows, "machineTypes", "machineTypeAggregatedList")

    # -- instances ----------------------------------------------------------------------------------------------

    def _all_instances(self, ask: Ask) -> bytes:
        """Cheap for thousands: one label is looked up, a page is cut, and its items come from memory."""
        asked = PageRequest.parse(ask.query)
        self._listings.check_reach(ask.query)
        self._listings.check_page(asked)
        page, following = asked.cut(self._found(ask), lambda record: record.key)
        by_scope: dict[str, list[bytes]] = {f"zones/{zone}": [] for zone in self._catalogue.zones}
        for record in page:
            by_scope[f"zones/{record.zone}"].append(self._records.render(record, ask.base))
        return self._listings.aggregated(
            "instances", by_scope, kind="instanceAggregatedList", base=ask.base, following=following
        )

    def _instances(self, ask: Ask) -> bytes:
        zone = ask.parts["zone"]
        self._catalogue.check_zone(zone)
        asked = PageRequest.parse(ask.query)
        self._listings.check_page(asked)
        page, following = asked.cut(
            [record for record in self._found(ask) if record.zone == zone], lambda record: record.key
        )
        rows = [self._records.render(record, ask.base) for record in page]
        path = f"zones/{zone}/instances"
        return self._listings.of_place(path, rows, kind="instanceList", base=ask.base, following=following)

    def _found(self, ask: Ask) -> list[Record]:
        text = ask.query.get("filter", "")
        label = label_asked(text)
        if label is not None:
            return self._records.labelled(*label)
        test = parse(text)
        if not text:
            return list(self._records)
        return [one for one in self._records if test(json.loads(self._records.render(one, ask.base)))]

    # -- operations ---------------------------------------------------------------------------------------------

    def operation(self, ask: Ask) -> bytes:
        return _text(self._show(self.operation_of(ask), ask))

    def operation_of(self, ask: Ask) -> Operation:
        """Raises GceError(404)."""
        scope = ask.path.removeprefix(f"projects/{ask.parts['project']}/").partition("/operations/")[0]
        found = self._operations.get(scope, ask.parts["operation"], ask.parts["project"])
        found.settle(self._clock())
        return found

    def _all_operations(self, ask: Ask) -> bytes:
        rows = [(operation.scope, shown) for operation, shown in self._told(ask)]
        scopes = ["global", *(f"regions/{one}" for one in self._catalogue.regions)]
        return self._aggregate(ask, rows, "operations", "operationAggregatedList", more_scopes=scopes)

    def _operation_list(self, ask: Ask) -> bytes:
        scope = ask.path.removeprefix(f"projects/{ask.parts['project']}/").removesuffix("/operations")
        rows = [shown for operation, shown in self._told(ask) if operation.scope == scope]
        return self._list(ask, rows, "operationList", is_filtered=True)

    def _told(self, ask: Ask) -> list[tuple[Operation, Json]]:
        """Operations that have shown up and fit the filter, oldest first or as asked."""
        test = parse(ask.query.get("filter", ""))
        now = self._clock()
        rows = [(one, self._show(one, ask)) for one in self._operations if one.inserted_at <= now]
        rows = [(one, shown) for one, shown in rows if test(shown)]
        match ask.query.get("orderBy", ""):
            case "creationTimestamp desc":
                rows.sort(key=lambda row: -row[0].inserted_at)
            case "" | "name":
                rows.sort(key=lambda row: row[0].name)
            case order:
                raise invalid("orderBy", order, "Must be name or creationTimestamp desc.")
        return rows

    def _show(self, operation: Operation, ask: Ask) -> Json:
        return operation.show(self._clock(), ask.base)

    # -- pages --------------------------------------------------------------------------------------------------

    def _list(self, ask: Ask, rows: Sequence[Json], kind: str, *, is_filtered: bool = False) -> bytes:
        asked = PageRequest.parse(ask.query)
        self._listings.check_page(asked)
        test = parse("" if is_filtered else ask.query.get("filter", ""))
        found = [shown for shown in rows if test(shown)]
        page, following = asked.count_off(found)
        path = ask.path.partition("/")[2].partition("/")[2]
        return self._listings.of_place(path, list(map(_text, page)), kind=kind, base=ask.base, following=following)

    def _aggregate(
        self, ask: Ask, rows: Sequence[tuple[str, Json]], collection: str, kind: str, *, more_scopes: Sequence[str] = ()
    ) -> bytes:
        asked = PageRequest.parse(ask.query)
        self._listings.check_reach(ask.query)
        self._listings.check_page(asked)
        test = parse("" if collection == "operations" else ask.query.get("filter", ""))
        page, following = asked.count_off([row for row in rows if test(row[1])])
        by_scope: dict[str, list[bytes]] = {
            scope: [] for scope in (*more_scopes, *(f"zones/{zone}" for zone in self._catalogue.zones))
        }
        for scope, shown in page:
            by_scope[scope].append(_text(shown))
        return self._listings.aggregated(collection, by_scope, kind=kind, base=ask.base, following=following)

    def check_project(self, ask: Ask) -> None:
        """Images may be another project's. Raises GceError(404)."""
        if ask.parts["project"] != self._catalogue.project and not ask.method.name.startswith("images."):
            raise not_found(f"projects/{ask.parts['project']}")


def _text(shown: Json) -> bytes:
    return json.dumps(shown).encode()
