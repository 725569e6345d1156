CREATE TABLE IF NOT EXISTS outbox_schema (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, started INTEGER NOT NULL);

CREATE TABLE outbox_message (
	id INTEGER PRIMARY KEY AUTOINCREMENT,
	shard INTEGER NOT NULL,
	message_id TEXT NOT NULL,
	topic TEXT NOT NULL,
	message_key TEXT NOT NULL,
	message_type TEXT NOT NULL,
	happened BIGINT NOT NULL,
	header TEXT NOT NULL,
	body BLOB NOT NULL,
	enqueued BIGINT NOT NULL,
	CHECK (shard >= 0 AND shard < 16)
);

CREATE INDEX outbox_message_order ON outbox_message (shard, id);

CREATE TABLE outbox_parked (
	id BIGINT NOT NULL PRIMARY KEY,
	shard INTEGER NOT NULL,
	message_id TEXT NOT NULL,
	topic TEXT NOT NULL,
	message_key TEXT NOT NULL,
	message_type TEXT NOT NULL,
	happened BIGINT NOT NULL,
	header TEXT NOT NULL,
	body BLOB NOT NULL,
	enqueued BIGINT NOT NULL,
	reason TEXT NOT NULL,
	attempts INTEGER NOT NULL,
	parked BIGINT NOT NULL,
	blocks INTEGER NOT NULL,
	discarded BIGINT NOT NULL,
	discard_reason TEXT NOT NULL
);

CREATE INDEX outbox_parked_key ON outbox_parked (shard, message_key);

CREATE TABLE outbox_lease (
	shard INTEGER NOT NULL PRIMARY KEY,
	owner TEXT NOT NULL,
	epoch BIGINT NOT NULL,
	expires BIGINT NOT NULL
);

INSERT INTO outbox_lease (shard, owner, epoch, expires) VALUES (0, '', 0, 0), (1, '', 0, 0), (2, '', 0, 0), (3, '', 0, 0), (4, '', 0, 0), (5, '', 0, 0), (6, '', 0, 0), (7, '', 0, 0), (8, '', 0, 0), (9, '', 0, 0), (10, '', 0, 0), (11, '', 0, 0), (12, '', 0, 0), (13, '', 0, 0), (14, '', 0, 0), (15, '', 0, 0);

INSERT INTO outbox_schema (id, version, started) VALUES (1, 1, 1);
