"""Migrations: the tables of the catalog, by versions that only go forward.

============================== =========================================================================================
``chromakeep.tenants``         one row each
``chromakeep.databases``       one row each
``chromakeep.collections``     one row each; ``relation`` is the table in which its records lie
``chromakeep.keys``            the keys that its records have had, for the schema that is shown
``chromakeep.arriving``        collections that a copy is writing
``chromakeep.segments``        ranges of ``place`` of a collection for which an index of vectors stands
``chromakeep.settings``        how text in documents is found: by ``pg_trgm`` or by our own ``trigrams``
``chromakeep.c<n>_<name>``     the records of one collection
============================== =========================================================================================

Text that PostgreSQL cannot hold is escaped, see ``text``.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE chromakeep.tenants (
        name text COLLATE "C" PRIMARY KEY,
        resource_name text
    );
    CREATE TABLE chromakeep.databases (
        id uuid PRIMARY KEY,
        tenant text COLLATE "C" NOT NULL REFERENCES chromakeep.tenants,
        name text COLLATE "C" NOT NULL,
        UNIQUE (tenant, name)
    );
    CREATE TABLE chromakeep.collections (
        id uuid PRIMARY KEY,
        database uuid NOT NULL REFERENCES chromakeep.databases,
        name text COLLATE "C" NOT NULL,
        relation text COLLATE "C" NOT NULL UNIQUE,
        space text NOT NULL CHECK (space IN ('l2', 'cosine', 'ip')),
        storage text NOT NULL DEFAULT 'vector' CHECK (storage IN ('vector', 'halfvec')),
        dimension integer,
        metadata text,
        configuration text NOT NULL,
        schema text,
        parent uuid,
        created timestamptz NOT NULL DEFAULT now(),
        UNIQUE (database, name)
    );
    CREATE TABLE chromakeep.segments (
        collection uuid NOT NULL REFERENCES chromakeep.collections ON DELETE CASCADE,
        low bigint NOT NULL,   -- exclusive
        high bigint NOT NULL,  -- inclusive
        index text COLLATE "C" NOT NULL,
        built bigint NOT NULL, -- records that it was built with
        PRIMARY KEY (collection, low)
    );
    CREATE TABLE chromakeep.keys (  -- of the metadata of its records, and of which kinds values were
        collection uuid NOT NULL REFERENCES chromakeep.collections ON DELETE CASCADE,
        key text COLLATE "C" NOT NULL,
        kind text NOT NULL
    );
    CREATE UNIQUE INDEX keys_once ON chromakeep.keys (collection, kind, hashtextextended(key, 0));
    CREATE TABLE chromakeep.arriving (  -- collections that a copy writes, in a database that nobody sees: see sink.py
        collection uuid PRIMARY KEY REFERENCES chromakeep.collections ON DELETE CASCADE,
        run text COLLATE "C" NOT NULL,
        tenant text COLLATE "C" NOT NULL,   -- and database and name: what it is to be
        database text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        replaces boolean NOT NULL,
        finished boolean NOT NULL DEFAULT false
    );
    CREATE SEQUENCE chromakeep.relations;
    CREATE SEQUENCE chromakeep.blocks;  -- of 65,536 positions each: seq and place
    CREATE TABLE chromakeep.settings (name text PRIMARY KEY, value text NOT NULL);
    -- how text in documents is found: decided once, so that all write alike
    INSERT INTO chromakeep.settings VALUES ('documents', current_setting('chromakeep.documents'));  -- see migrating
    INSERT INTO chromakeep.tenants (name) VALUES ('default_tenant');
    INSERT INTO chromakeep.databases (id, tenant, name)
        VALUES ('00000000-0000-0000-0000-000000000000', 'default_tenant', 'default_database');
    """,
)
"""Each is run once, in order, in a transaction of its own, by whoever comes first; an advisory lock holds others."""

RECORDS = """
    CREATE TABLE chromakeep.{relation} (
        key uuid PRIMARY KEY,                 -- the first 16 bytes of SHA-256 of the id in UTF-8: an id may be longer
                                              -- than an index takes
        seq bigint NOT NULL,                  -- the order in which records were added
        place bigint NOT NULL,                -- new with each new vector: what the segments are ranges of
        id text COLLATE "C" NOT NULL,
        embedding {storage},                  -- of the collection's dimension
        document text COLLATE "C",
        uri text COLLATE "C",
        metadata jsonb,                       -- null: none
        trigrams integer[]                    -- of the document, where the server has no pg_trgm
    );
    CREATE UNIQUE INDEX {relation}_seq ON chromakeep.{relation} (seq);
    CREATE INDEX {relation}_place ON chromakeep.{relation} (place);
    -- A vector that fits a page lies in its row: else each that is measured costs three pages more
    ALTER TABLE chromakeep.{relation} SET (toast_tuple_target = 8160), ALTER embedding SET STORAGE MAIN;
    ALTER TABLE chromakeep.{relation} ALTER embedding SET STATISTICS 0;  -- ANALYZE would read and sort vectors in vain
"""
