-- What ended machines cost, in nano-dollars, so that sums are whole numbers. Costs outlive their machines' rows.
CREATE TABLE costs (
    instance TEXT NOT NULL,
    use TEXT NOT NULL,
    ended_us INTEGER NOT NULL,
    day TEXT NOT NULL,
    provider TEXT NOT NULL,
    pool TEXT NOT NULL,
    capacity_type TEXT NOT NULL,
    repo TEXT NOT NULL,
    workflow TEXT NOT NULL,
    milliseconds INTEGER NOT NULL,
    usd_nano INTEGER NOT NULL,
    on_demand_usd_nano INTEGER NOT NULL,
    PRIMARY KEY (instance, use)
);
CREATE INDEX costs_ended ON costs (ended_us);
