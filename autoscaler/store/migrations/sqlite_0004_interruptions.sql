-- Which machines their clouds took or are taking, and on what evidence: one row per loss.
CREATE TABLE interruptions (
    instance TEXT PRIMARY KEY,
    live INTEGER NOT NULL,
    noticed_us INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX interruptions_live ON interruptions (noticed_us, instance) WHERE live = 1;
CREATE INDEX interruptions_recent ON interruptions (noticed_us, instance);
CREATE INDEX interruptions_ended ON interruptions (noticed_us, instance) WHERE live = 0;
