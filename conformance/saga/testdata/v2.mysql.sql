CREATE TABLE IF NOT EXISTS saga_schema (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, started INTEGER NOT NULL) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE saga_instance (
  id VARCHAR(200) NOT NULL PRIMARY KEY,
  name VARCHAR(100) NOT NULL,
  version INTEGER NOT NULL,
  status SMALLINT NOT NULL,
  step VARCHAR(100) NOT NULL,
  attempt INTEGER NOT NULL,
  reason LONGTEXT NOT NULL,
  cancel LONGTEXT NOT NULL,
  stuck LONGTEXT NOT NULL,
  stuck_at BIGINT NULL,
  parked SMALLINT NOT NULL,
  data LONGTEXT NOT NULL,
  input VARCHAR(64) NOT NULL,
  starts BIGINT NOT NULL,
  owner VARCHAR(120) NOT NULL,
  epoch BIGINT NOT NULL,
  revision BIGINT NOT NULL,
  takeovers INTEGER NOT NULL,
  wake_at BIGINT NULL,
  deadline BIGINT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE INDEX saga_instance_wake ON saga_instance (wake_at);

CREATE INDEX saga_instance_status ON saga_instance (status, created_at, id);

CREATE INDEX saga_instance_stuck ON saga_instance (stuck_at);

CREATE TABLE saga_history (
  saga_id VARCHAR(200) NOT NULL,
  n BIGINT NOT NULL,
  at BIGINT NOT NULL,
  step VARCHAR(100) NOT NULL,
  op VARCHAR(20) NOT NULL,
  attempt INTEGER NOT NULL,
  outcome VARCHAR(20) NOT NULL,
  detail LONGTEXT NOT NULL,
  took BIGINT NOT NULL,
  node VARCHAR(120) NOT NULL,
  PRIMARY KEY (saga_id, n)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE saga_node (
  id VARCHAR(120) NOT NULL PRIMARY KEY,
  expires_at BIGINT NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

ALTER TABLE saga_instance ADD COLUMN signals BIGINT NOT NULL DEFAULT 0;

ALTER TABLE saga_instance ADD COLUMN notes LONGTEXT NULL;

CREATE TABLE saga_signal (
  saga_id VARCHAR(200) NOT NULL,
  step VARCHAR(100) NOT NULL,
  op VARCHAR(4) NOT NULL,
  data LONGTEXT NOT NULL,
  at BIGINT NOT NULL,
  PRIMARY KEY (saga_id, step, op)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE INDEX saga_signal_at ON saga_signal (at);

CREATE TABLE saga_lock (
  name VARCHAR(200) NOT NULL PRIMARY KEY,
  saga_id VARCHAR(200) NOT NULL,
  asked BIGINT NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE INDEX saga_lock_saga ON saga_lock (saga_id);

CREATE TABLE saga_lock_wait (
  name VARCHAR(200) NOT NULL,
  saga_id VARCHAR(200) NOT NULL,
  at BIGINT NOT NULL,
  PRIMARY KEY (name, saga_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE INDEX saga_lock_wait_saga ON saga_lock_wait (saga_id);

INSERT INTO saga_schema (id, version, started) VALUES (1, 2, 2);
