-- The authority itself: one row, written by init, changed by root operations
-- and whenever a revocation list is issued.
CREATE TABLE authority (
    -- Always 1.
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- SPIFFE trust domain. Never changes.
    federation TEXT NOT NULL,
    -- Root certificate, DER. Never changes.
    root_der BLOB NOT NULL,
    -- Certificate of the issuing CA in use, DER; its key is a file named for the key.
    issuing_der BLOB NOT NULL,
    -- Latest list of the root (DER) and its number.
    root_crl BLOB NOT NULL,
    root_crl_number INTEGER NOT NULL,
    -- Latest list of the issuing CA (DER), its number, and when it was issued
    -- (milliseconds since the Unix epoch).
    issuing_crl BLOB NOT NULL,
    issuing_crl_number INTEGER NOT NULL,
    issuing_crl_at_ms INTEGER NOT NULL
) STRICT;

-- Every certificate the root ever issued to an issuing CA.
CREATE TABLE issuing_ca (
    -- 16 bytes. Never changes.
    serial BLOB PRIMARY KEY,
    issued_at_ms INTEGER NOT NULL,
    -- NULL: not revoked.
    revoked_at_ms INTEGER
) STRICT, WITHOUT ROWID;

-- Every leaf. Only revoked_at_ms ever changes.
CREATE TABLE certificate (
    -- 16 bytes.
    serial BLOB PRIMARY KEY,
    -- SPIFFE path, with a leading slash.
    party TEXT NOT NULL,
    -- DNS names and IP addresses, one a line.
    names TEXT NOT NULL,
    -- SHA-256 of the SubjectPublicKeyInfo.
    key_pin BLOB NOT NULL,
    -- The leaf and the issuing CA's certificate as handed out, DER.
    leaf_der BLOB NOT NULL,
    issuing_der BLOB NOT NULL,
    issued_at_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL,
    -- NULL: not revoked.
    revoked_at_ms INTEGER
) STRICT;

CREATE INDEX certificate_by_party ON certificate (party, issued_at_ms);
CREATE INDEX certificate_revoked ON certificate (revoked_at_ms) WHERE revoked_at_ms IS NOT NULL;

-- Join tokens. A spent one stays, so that the same request gets the same answer.
CREATE TABLE join_token (
    -- SHA-256 of the token; the token itself is nowhere.
    digest BLOB PRIMARY KEY,
    -- Whom it is for, as in certificate.
    party TEXT NOT NULL,
    names TEXT NOT NULL,
    -- Last moment at which it can be spent.
    expires_at_ms INTEGER NOT NULL,
    -- SHA-256 of the request that spent it, and what came of it. NULL: not spent.
    csr_digest BLOB,
    serial BLOB REFERENCES certificate (serial)
) STRICT, WITHOUT ROWID;
