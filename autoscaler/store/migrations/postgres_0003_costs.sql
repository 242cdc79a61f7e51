-- What ended machines cost, in nano-dollars, so that sums are whole numbers. Costs outlive their machines' rows.
CREATE TABLE costs (
    instance text COLLATE "C" NOT NULL,
    use text COLLATE "C" NOT NULL,
    ended_us bigint NOT NULL,
    day text COLLATE "C" NOT NULL,
    provider text COLLATE "C" NOT NULL,
    pool text COLLATE "C" NOT NULL,
    capacity_type text COLLATE "C" NOT NULL,
    repo text COLLATE "C" NOT NULL,
    workflow text COLLATE "C" NOT NULL,
    milliseconds bigint NOT NULL,
    usd_nano bigint NOT NULL,
    on_demand_usd_nano bigint NOT NULL,
    PRIMARY KEY (instance, use)
);
CREATE INDEX costs_ended ON costs (ended_us);
