"""Every bound of the system, with its unit last in the name and its reason.

Settings may change those marked (setting).
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# --- one ingest request -------------------------------------------------------------------------------------------
BODY_WIRE_BYTES_MAX = 64 * MIB
"""(setting) Largest request body as it arrives; a day of one large site fits several times."""
BODY_INFLATED_BYTES_MAX = 1 * GIB
"""(setting) Largest body after decompression."""
INFLATE_RATIO_MAX = 200
"""(setting) Inflated bytes per wire byte. Real telemetry reaches 30; a bomb exceeds 1,000."""
INFLATE_RATIO_FREE_BYTES = 1 * MIB
"""The ratio is checked only past this many inflated bytes, so that tiny repetitive bodies pass."""
INFLATE_SLICE_BYTES = 64 * KIB
"""Input handed to the inflater at once: isal copies its unconsumed tail, so slices must stay small."""
INFLATE_OUTPUT_BYTES = 1 * MIB
"""Most output taken from the inflater in one step; it bounds memory whatever the ratio."""
GZIP_MEMBERS_MAX = 65_536
"""Members of one gzip body; each costs some microseconds to open. bgzip makes one for 64 KiB: 16,384 in 1 GiB."""
GZIP_MEMBER_SLICE_BYTES = 4 * KIB
"""Input slice from the third member on: what follows a member is copied, so slices must stay small."""
ZSTD_SLICE_BYTES = 128
"""zstd input handed on at once: 4 bytes can stand for a block of 128 KiB, and a call's output has no other bound."""
ZSTD_WINDOW_BYTES_MAX = 8 * MIB
"""Largest zstd window; RFC 8878 section 3.1.1.1.2 asks decoders for at least this."""
EQUIPMENT_OBJECTS_MAX = 10_000
"""(setting) Equipment objects in one bulk request."""
READINGS_PER_REQUEST_MAX = 1_000_000
"""(setting) Readings in one bulk request."""
READINGS_PER_GENERAL_REQUEST_MAX = 10_000
"""Objects in one POST /readings array."""
SMALL_BODY_BYTES_MAX = 64 * KIB
"""Largest body of a single-reading request, and largest payload that travels inside a claim."""
OBJECT_BUFFER_BYTES = 1 * MIB
"""An equipment object longer than this is decoded in parts, so that memory stays bounded: `{},` becomes 180 bytes."""
OBJECT_PART_BYTES = 256 * KIB
"""Readings of a long equipment object decoded at once."""
SCAN_BYTES_MIN = 16 * KIB
"""With less JSON the compiled reader costs more than it saves: it needs room for its columns."""
SCAN_READINGS_MAX = 16_384
"""Readings that the compiled reader takes in one call, at most: what a window of usual length holds, several times.
Each thread that ever used it keeps the room for them, 1.4 MB."""
SCAN_OBJECTS_MAX = 4_096
SCAN_UNUSUAL_MAX = 3
SCAN_READINGS_AN_UNUSUAL_MIN = 512
"""Each object that it does not read costs half a millisecond, for the columns change hands. It is not asked again once
that was more often than SCAN_UNUSUAL_MAX, and than once in so many readings: those it saves as much with."""
DECODE_ROWS_HELD = 256
"""Decoded readings held before their fields are noted: few enough for the processor's cache."""
DECODE_ROWS_PER_CHUNK = 8_000
"""Readings and objects turned into columns at once, at most: more cost memory and gain nothing."""
DECODE_BYTES_PER_CHUNK = 6 * MIB
"""JSON after which readings are turned into columns however few they are. Until then it is kept, in case some of it
has to be read again."""
DECODE_SKIM_BYTES_MIN = 4 * KIB
"""An equipment object shorter than this is decoded with all its descriptions at once: it has few readings, and those
of the last one of each sensor are needed."""
DESCRIPTIONS_REMEMBERED = 20_000
"""Kept from one bulk request to the next: so many descriptions of sensors, of equipment, heads of equipment objects,
and names of sensors; 10 to 20 MB each where all differ."""
DESCRIPTION_REMEMBERED_CHARS_MAX = 400
"""Longer descriptions are not kept so, nor heads of more bytes."""
ERRORS_REPORTED_MAX = 20
"""Per-reading errors listed in an answer; all of them are in the quarantine."""
EXCERPTS_KEPT_MAX = 10_000
"""Rejected readings of one batch whose content is kept beside their position and reason."""
EXCERPT_CHARS_MAX = 500
"""Characters kept of a rejected reading."""
PREFER_WAIT_SECONDS_MAX = 30
"""Longest `Prefer: wait=N` honoured."""
SETTLED_POLL_SECONDS = 0.5
"""How often a request that waits looks by itself: a notice from another process may be lost."""
SETTLED_LOOK_SECONDS = 0.1
"""It looks a last time so long before its time is over."""
IDEMPOTENCY_KEY_CHARS_MAX = 255
IDEMPOTENCY_KEPT_SECONDS = 24 * 3600
EXTERNAL_ID_CHARS_MAX = 128
"""Longest sensor_id of the SensorFlow form."""
NAME_CHARS_MAX = 128
"""Longest name of a quantity."""
TEXT_CHARS_MAX = 500
"""Longest description text kept (names, locations, models) and longest status; longer ones are cut."""
GENERAL_BODY_BYTES_MAX = 16 * MIB
"""Largest inflated body of POST /readings: 10,000 objects of 1.6 KB."""
BULK_STREAMS_MAX = 16
"""Bulk bodies received at the same time; each may hold one buffer and its columns. More wait their turn."""
BODIES_WAITING_MAX = 1_000
BODIES_WAITING_BYTES_MAX = 64 * MIB
"""Bodies that wait for their turn; past either bound a request is refused, to come again later (503)."""
BULK_WHOLE_BYTES_MAX = 256 * KIB
"""Bulk bodies up to this size are received whole before a thread takes them, so a slow sender holds none."""
BODY_IDLE_SECONDS_MAX = 30
"""A body that brings nothing for this long is given up (408)."""
BODY_SECONDS_MAX = 12 * 3600
"""A body that takes this long in all is given up (408): less than CLAIM_DISORDER_SECONDS_MAX, which counts on it."""
GATHER_ENTRIES_MAX = 500
"""Single readings in one claim."""
GATHER_PAUSE_ENTRIES = 4
GATHER_PAUSE_SECONDS = 0.002
"""After a claim of at least so many single readings, the next waits this long for more: a sync shared by more of them
costs each less, and its own time is about as long."""
RECORD_IDS_RESERVED = 65_536
"""Record ids reserved at once; a crash skips the unused rest."""
QUANTITIES_PER_READING_MAX = 64
"""Quantities in one single-reading request."""

# --- time ---------------------------------------------------------------------------------------------------------
TIME_OLDEST_US = -2_208_988_800_000_000
"""1900-01-01: readings before it are too_old, whatever is kept; dates much further back cannot be computed with."""
FUTURE_TOLERANCE_SECONDS = 600
"""A reading further ahead of our clock than this is quarantined as in_future."""
RAW_RETENTION_DAYS = 30
"""(setting) Raw readings are kept this long; 0 keeps them for ever."""
PAYLOAD_RETENTION_DAYS = 7
"""(setting) Raw payloads are kept this long; 0 keeps them for ever."""

# --- object store and queue ---------------------------------------------------------------------------------------
OBJECT_KEY_CHARS_MAX = 1024
"""Longest object key: S3's limit."""
OBJECT_KEY_PART_CHARS_MAX = 255
"""Longest part of an object key: the limit of a file name."""
OBJECT_CHUNK_BYTES = 256 * KIB
"""Bytes handed out at once when an object is read."""
LISTED_NAMES_MAX = 20_000
"""Names of one folder held in memory while it is listed; a longer folder is scanned again for its next names."""
FOLDERS_REMEMBERED_MAX = 1_000
"""Folders known to be durable, so that a put into one need not sync its parents again."""
FETCH_BYTES_MAX = 32 * MIB
"""Claim bytes handed out by one fetch past the first claim: inline payloads must not fill the memory."""
QUEUE_LOG_BYTES_MAX = 16 * MIB
"""The queue's write-ahead log is cut to this after a checkpoint."""
QUEUE_CHECKED_BYTES_MAX = 64 * MIB
"""A queue file up to this size is checked page by page at start (0.1 s); a longer one as it is read."""
QUEUE_FREE_PAGES_MAX = 4_096
"""Free pages (4 KiB) kept in the queue file for reuse; past it they are given back to the file system."""
QUEUE_PAGES_FREED_MAX = 1_024
"""Pages given back at once, so that an acknowledgement stays quick."""

# --- payloads on S3 -----------------------------------------------------------------------------------------------
S3_PART_BYTES = 5 * MIB
"""An object up to this size is put by one request; a larger one in parts of it, two of which are in memory. S3 takes no
smaller part."""
S3_CONNECT_SECONDS_MAX = 2.0
S3_REQUEST_SECONDS_MAX = 4.0
"""A request that has no answer within this is given up: an outage must soon be a 503. A part needs 10 Mbit/s so."""
S3_RETRIES_MAX = 3
S3_RETRY_SECONDS_MAX = 1.0
"""No request is sent again this long after it was sent first, so that it cannot take longer than both together."""
S3_READ_SECONDS_MAX = 600.0
"""Longest time that one object is read: the worker decodes meanwhile. S3_REQUEST_SECONDS_MAX bounds each wait."""
S3_PAUSE_SECONDS = 1.0
"""While S3 does not answer, one put in this time tries, and the others fail at once."""
S3_CHECK_SECONDS_MAX = 1.8
"""A check ends before HEALTH_CHECK_SECONDS."""
S3_LISTED_AT_ONCE = 1_000
"""Objects listed by one request: S3's limit."""
S3_ABANDONED_SECONDS = 24 * 3600
"""Temporary objects older than this belong to no put that still runs."""

# --- claims on Kafka ----------------------------------------------------------------------------------------------
KAFKA_PUBLISH_SECONDS_MAX = 5.0
"""A claim that the brokers did not acknowledge within this is given up."""
KAFKA_PUBLISH_GRACE_SECONDS = 2.0
"""The client tells of a message that is given up at most this much later: it looks once a second."""
KAFKA_LINGER_MS = 1
"""Messages wait this long for others. With 64 threads 0 took half the claims and a p99 of 150 ms, 5 cost all of them
5 ms (decision 0011)."""
KAFKA_PUBLISH_KIB_MAX = 64 * 1024
"""KiB of claims that may wait for the brokers in one process; past it publishing fails at once."""
KAFKA_START_SECONDS_MAX = 10.0
"""A start gives the brokers this long to answer."""
KAFKA_CHECK_SECONDS_MAX = 0.9
"""A check gives the brokers this long; with the depth, which takes as long at most, it ends before
HEALTH_CHECK_SECONDS."""
KAFKA_PROBE_KEPT_SECONDS = 0.5
"""While the brokers do not answer, those who publish share one look at them for this long."""
KAFKA_DEPTH_CACHED_SECONDS = 1.0
"""The depth is told from memory for this long: to find it out takes four requests to the brokers, and reading the first
claim that waits."""
KAFKA_SESSION_SECONDS = 10
"""A worker that was not heard of for this long has lost its partitions. Heartbeats come from a thread of their own, so
that a long round of the worker costs none."""
KAFKA_HEARTBEAT_SECONDS = 1
"""How often a worker is heard of, which is also how soon it learns that the group shares anew: until the last one has
learnt it, the first one can commit nothing."""
KAFKA_COMMIT_SECONDS_MAX = 8.0
"""An acknowledgement that the brokers did not take within this fails, and is tried again. They answer one request of a
connection at a time, so a commit waits behind the one to join a group that is being shared anew. Shorter than
KAFKA_SESSION_SECONDS: once that is over the partitions are lost, and with them what was to be noted."""
KAFKA_JOIN_SECONDS_MAX = 15.0
"""A worker waits this long for its place in the group, longer than KAFKA_SESSION_SECONDS, for which one that died still
has its place; and as long for claims that were there before it."""
KAFKA_BUFFER_CLAIMS_MAX = 4_000
"""Claims read ahead of the worker: two rounds of GATHER_CLAIMS_MAX. FETCH_BYTES_MAX bounds their bytes."""
KAFKA_PREFETCH_KIB_MAX = 16 * 1024
"""KiB that the client reads ahead of that buffer."""
KAFKA_ROOM_SECONDS_MAX = 1.0
"""How long a full buffer may keep the reader from looking after its group; then it pauses its partitions, which costs
reading the prefetched messages again."""
KAFKA_POLL_SECONDS = 0.05
"""Longest wait of the threads that serve the client; closing waits for them."""
KAFKA_CLOSE_SECONDS_MAX = 5.0
"""A group is left within this; with the brokers gone the client would wait for ever."""
KAFKA_DEAD_LETTER_BYTES_CUT = 256 * KIB
"""Of a message that is no claim and longer than the topic of the dead letters takes, so much is kept."""
KAFKA_TRIM_SECONDS = 600.0
"""How often acknowledged claims are deleted from the topic."""
KAFKA_SEGMENT_BYTES = 64 * MIB
"""Size of the files of a topic that is made: acknowledged claims leave the disk by whole files."""
KAFKA_SEGMENT_HOURS = 24
"""A file is closed after this, so that a slow topic gives its disk back, too."""
KAFKA_CLIENT_LOG_SECONDS = 10.0
"""Lines of the client that say the same thing are written once in this time, with their number: it writes one for each
try to connect."""

# --- time series on PostgreSQL ------------------------------------------------------------------------------------
POSTGRES_CONNECTIONS_KEPT = 4
POSTGRES_CONNECTIONS_MAX = 16
"""Connections of one process to the time series; queries past it wait for one."""
POSTGRES_CONNECT_SECONDS_MAX = 4
"""Longest wait for a connection."""
POSTGRES_LOCK_SECONDS_MAX = 20
"""Longest wait for a lock, and for the network to take what was sent."""
POSTGRES_READ_SECONDS_MAX = 30
"""Longest run of one statement of a read: a client waits for it."""
POSTGRES_STATEMENT_SECONDS_MAX = 60
"""Longest run of any other statement; GATHER_READINGS_MAX readings are written in a few seconds."""
POSTGRES_REFRESH_SECONDS_MAX = 600
"""Longest refresh of a day in TimescaleDB's aggregates: some seconds for a thousand sensors."""
POSTGRES_ANSWER_GRACE_SECONDS = 5
"""A server that has not answered, or ended the statement, this long after it should have is taken for dead."""
POSTGRES_ATTEMPTS_MAX = 20
"""Tries of a transaction that met another one. Each time another one was done, so many workers need some."""
POSTGRES_DAYS_AT_ONCE_MAX = 100
"""Days of readings touched by one transaction: each costs two or three locks of the server, which has room for 64 for
each connection it allows."""
POSTGRES_MAINTAIN_SECONDS = 1.0
"""A call of `maintain` begins no further step after this: the worker that called it does not write meanwhile."""
POSTGRES_STEP_SECONDS = 0.3
"""How long one step of maintenance is meant to take; the next one takes more or fewer sensors or hours accordingly."""
POSTGRES_MAINTAIN_LOCK_SECONDS_MAX = 5.0
"""Maintenance waits this long for the writes in flight, and new ones wait behind it; most take less. It does so once
for an hour that is rolled up, and once for a day that is sealed."""
POSTGRES_SEAL_READS_SECONDS_MAX = 0.3
"""And this long, to seal a day, for the reads in flight. Most take less, and one that takes long (a backup by pg_dump)
takes longer than anything that could be waited for."""
POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS = 60.0
"""After it gave up, so that something that takes very long does not hold up the others again and again."""
POSTGRES_REFRESH_SECONDS = 12 * 3600.0
"""A day with changed hours is refreshed in TimescaleDB's aggregates this often: that computes all its sensors anew.
Until then reads compute the changed hours from raw."""
POSTGRES_BATCHES_PRUNED_MAX = 10_000
"""Batch ids forgotten at once."""

# --- worker -------------------------------------------------------------------------------------------------------
DUCKDB_ROW_GROUP_ROWS = 122_880
"""Rows that DuckDB compresses together."""
GATHER_READINGS_MAX = 2 * DUCKDB_ROW_GROUP_ROWS
"""Readings written in one transaction, and one claim more where that comes during the wait.

DuckDB compresses a full row group as it is written, and what is left over at the next checkpoint, together with its
neighbours where fewer row groups can hold them all. With more than a row group and a half at a time they cannot, and a
reading costs a third less than with somewhat fewer (measured from 180,000 on).
"""
GATHER_READINGS_ENOUGH = 3 * DUCKDB_ROW_GROUP_ROWS // 2
"""With so many the worker waits for no more."""
GATHER_CLAIMS_MAX = 2_000
"""Claims taken at once, so that a flood of tiny claims does not make one endless transaction."""
GATHER_SECONDS = 1.0
"""(setting) How long the worker waits for more claims before it writes what it has."""
SETTLE_SECONDS = 5.0
"""Under load, late readings are merged this often; when idle, at once."""
MAINTAIN_SECONDS = 5.0
"""Under load, hours are rolled up, days closed and retention applied this often."""
MAINTAIN_IDLE_SECONDS = 1.0
"""The same when idle."""
WORKER_IDLE_SECONDS = 1.0
"""How long an idle worker waits for a claim before it looks after the store."""
WORKER_PAUSE_SECONDS_MAX = 5.0
"""Longest pause of the worker between tries while a dependency is down."""
WORKER_OUTCOMES_WATCHED = 50
WORKER_FAILURES_MAX = 20
"""Dead letters among the last WORKER_OUTCOMES_WATCHED claims, and more than half, that stop the worker: a bad
release must not quarantine everything."""
CLAIM_DISORDER_SECONDS_MAX = 24 * 3600
"""A claim behind another in the queue counts as received at most this much earlier: a slow upload is published behind
quick ones that began after it. Payloads that are not this much older than the first waiting claim stay."""
HOUSEKEEPING_SECONDS = 3600.0
"""How often old payloads and ledger entries are looked for."""
ABANDONED_AT_ONCE_MAX = 1_000
"""Batches whose claims are gone that are ended at once."""
PAYLOADS_DELETED_AT_ONCE = 1_000
"""Old payloads deleted by one request to the object store: S3's limit."""
CLAIM_ATTEMPTS_MAX = 5
"""Tries before a claim that fails by itself goes to the dead letters."""
CLAIM_DEATHS_MAX = 4
"""Processes that may end in the middle of writing a batch before it goes to the dead letters: the first of them may
have written others beside it, and a machine that is out of memory may end one for nothing."""
MALLOC_OPTIONS = {-1: 64 * MIB, -3: 32 * MIB, -2: 16 * MIB}
"""Options of mallopt(3) in the server: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_TOP_PAD, the bytes of freed memory that
an arena keeps, those that are mapped apart, and those that it asks for at once."""
HANDOFF_BYTES_MAX = 64 * MIB
"""Decoded batches kept in memory for the worker of the same process; the rest is decoded again from storage."""
HANDOFF_PATIENCE_SECONDS = 1.0
"""Longest wait of a bulk body for room among them, while the worker takes some."""
HANDOFF_PATIENT_READINGS_MIN = 1_000
"""A body of fewer is decoded again in less time than its thread would wait."""

START_CATCH_UP_SECONDS_MAX = 60.0
"""A start waits this long for the claims a crash left behind, so that newest values are right from the first answer."""
SHUTDOWN_SECONDS_MAX = 30
"""Requests in flight at a shutdown have this long to end."""
UPKEEP_SECONDS = 60.0
"""How often small facts (use of keys, expired tokens) are written or forgotten."""

FIRST_KEY_SECONDS = 24 * 3600
"""Life of the key that the first start prints for trying things out."""
HTTP_HEADER_SECONDS_MAX = 30
"""An idle keep-alive connection is closed after this, and one whose request has no complete head by then."""
HTTP_HEAD_BYTES_MAX = 64 * KIB
"""Longest head of a request; browsers with all their cookies stay below 16 KiB."""

DISK_FREE_BYTES_MIN = 256 * MIB
"""With less free disk than this, health is degraded and `doctor` complains."""

# --- queries ------------------------------------------------------------------------------------------------------
PAGE_ROWS_DEFAULT = 10_000
PAGE_ROWS_MAX = 100_000
"""Rows of one history page. A larger limit is refused, never cut silently."""
QUERIES_AT_ONCE_MAX = 8
"""Queries of one kind (scans of the store, look-ups in the catalog) that run at once; others wait for their turn. It
bounds memory, a full page of 100,000 rows being some 35 MB of JSON, and leaves threads to ingest."""
ENCODED_AT_ONCE_ROWS = 10_000
"""Rows made into Python objects at once while a JSON page is built, so that a full page stays small."""
HISTORY_DAYS_DEFAULT = 7
HOME_ASSISTANT_HOURS_DEFAULT = 24
HOME_ASSISTANT_HOURS_MAX = 168
"""Hours of one Home Assistant answer: a week."""
EQUIPMENT_PAGE_DEFAULT = 100
EQUIPMENT_PAGE_MAX = 1_000
"""Equipment of one catalog page; each is answered with all its sensors."""
SENSOR_TYPE_CHARS_MAX = 500
"""Longest sensor_type asked for; no longer one is kept (TEXT_CHARS_MAX)."""
INTERVAL_SECONDS_DEFAULT = 300
"""Expected seconds between readings of an equipment that did not say."""
ONLINE_INTERVALS = 2.5
"""Online means seen within this many expected intervals: two missed readings and some delay are no outage yet."""

# --- live ---------------------------------------------------------------------------------------------------------
WS_CONNECTIONS_PER_KEY_MAX = 10
"""(setting) Open WebSockets per key."""
WS_QUEUE_MESSAGES_MAX = 1_000
"""Messages kept for a client that is slow; past it the oldest go and the client is told."""
WS_PING_SECONDS = 20
WS_PONG_TIMEOUT_SECONDS = 20
WS_TICKET_SECONDS = 30
"""Life of a one-time WebSocket ticket."""
WS_PAGE_MESSAGES_MAX = 256
"""Live messages handed to the clients in one turn of the event loop."""
WS_BATCH_MESSAGES_MAX = 10_000
"""Live messages of one batch; of a larger batch the first ones are left out, and the clients are told. A client's own
queue holds fewer, and encoding a million would keep the sender waiting for seconds."""
WS_LOOP_SHARE = 1 / 8
"""Part of the event loop's time that the fan-out may take. With few clients that delays nothing; with hundreds,
messages that arrive meanwhile share one write to each client, and requests keep the rest of the loop."""
WS_PACE_SECONDS_MAX = 0.1
"""Longest pause between two rounds of the fan-out, whatever the share says: live stays live."""
WS_INBOX_BYTES_MAX = 32 * MIB
"""Pub/sub messages waiting for the event loop; past it the oldest go and every client is told."""
WS_SEND_BUFFER_BYTES = 256 * KIB
"""Kernel send buffer of one WebSocket: what a client that stopped reading may hold there."""
WS_INCOMING_BYTES_MAX = 4 * KIB
"""Largest message taken from a WebSocket client; its content is ignored."""
WS_INCOMING_PER_MINUTE_MAX = 120
"""Messages a client may send in a minute before it is closed: we read them only to drop them."""
WS_FILTERS_MAX = 100
"""Filters of one WebSocket connection."""
WS_CLOSE_SECONDS = 5
"""How long a closed WebSocket may take to drain before its connection is cut."""

# --- authentication -----------------------------------------------------------------------------------------------
ACCESS_TOKEN_SECONDS = 15 * 60
REFRESH_TOKEN_SECONDS = 7 * 24 * 3600
SECRET_CHARS_MIN = 16
"""Shorter configured keys and secrets are refused outside --demo."""
SIGNING_SECRET_BYTES_MIN = 32
"""HS256 needs a key as long as its hash (RFC 7518 section 3.2)."""
PASSWORD_CHARS_MIN = 8
"""Shorter passwords are refused outside --demo."""
PASSWORD_CHARS_MAX = 256
"""Bounds what is hashed for somebody who is not known yet."""
PASSWORD_WAIT_SECONDS = 10.0
"""Longest wait for one's turn to hash a password; hashing takes 64 MiB, so it is done one at a time."""
LOGIN_THREADS_MAX = 4
"""Threads that logins may hold at once: they wait for their turn to hash, and other requests need threads too."""
USERNAME_CHARS_MAX = 64
CREDENTIAL_BYTES_MAX = 4 * KIB
"""Longest credential looked at; our tokens have about 500 bytes."""
CREDENTIAL_CACHE_ENTRIES_MAX = 10_000
CREDENTIAL_CACHE_SECONDS = 30
"""A credential changed by another process is believed for at most this long."""
KEY_USE_NOTED_SECONDS = 60
"""The time a key was last used is kept no finer than this."""
CLOCK_SKEW_SECONDS = 30
"""A token may come from another gateway whose clock is ahead by this much."""
LOGIN_FAILURES_PER_MINUTE_PER_IP = 10
LOGIN_FAILURES_PER_MINUTE_PER_USERNAME = 5
CREDENTIAL_FAILURES_PER_MINUTE_PER_IP = 60
"""Refused keys and tokens; each costs a look-up in the catalog."""
RATE_COUNTERS_MAX = 50_000
"""Rate limit counters kept; past it the oldest go. About 250 bytes each."""
RATE_SHARED_SECONDS = 0.1
"""How often a gateway tells the others of the requests it counted, and learns of theirs."""
RATE_SHARED_AT_ONCE = 1_000
"""Counters told by one call of Valkey."""
WS_TICKETS_MAX = 10_000
"""Unused WebSocket tickets kept; past it the oldest go."""
WS_CONNECTIONS_SETTABLE_MAX = 10_000
"""Most WebSockets that a key of its own limit can be given."""
API_KEYS_MAX = 10_000
USERS_MAX = 10_000
"""What the lists of keys and users can answer at once."""

# --- web ----------------------------------------------------------------------------------------------------------
REQUEST_ID_CHARS_MAX = 128
"""Longest X-Request-Id honoured; a longer one is replaced by ours."""
FIELD_ERRORS_REPORTED_MAX = 20
"""Invalid fields listed in one problem document."""
HEALTH_CHECK_SECONDS = 2.0
"""A dependency that has not answered its check by then counts as down."""
HEALTH_CACHED_SECONDS = 1.0
"""Health answers are shared this long, so that polling them costs the dependencies nothing."""
ACCESS_LOG_SECONDS = 0.25
"""Access log lines are gathered this long: a write for each would cost more than the rest of the log."""
ACCESS_LOG_BYTES_MAX = 64 * KIB
"""Gathered access log lines are written at once past this."""

# --- catalog ------------------------------------------------------------------------------------------------------
CATALOG_BUSY_SECONDS = 10
"""How long a transaction waits for another process before it fails."""
CATALOG_CONNECTIONS_KEPT = 8
"""Database connections kept open; reads come from the threads of the event loop's pool."""
CATALOG_CONNECTIONS_MAX = 64
"""Most database connections of one process; more readers than this wait."""
DESCRIPTIONS_CACHED_MAX = 200_000
"""Descriptions of equipment and sensors remembered as stored, so that the same ones cost no SQL."""
DESCRIPTIONS_TRUSTED_SECONDS = 900
"""Where other processes describe too, what is remembered as stored is stored again after this long at most."""
RECEIPTS_HELD_MAX = 500
"""Receipts of accepted batches that may wait in memory until somebody looks."""
RECEIPTS_WAITING_MAX = 10_000
"""Receipts kept in memory while the catalog is down; a settlement enters a batch whose receipt is lost."""
LATEST_LOOKED_UP_ROWS = 1_000
"""Newest values asked for by one statement, or one call of Valkey."""
LATEST_REMEMBERED_MAX = 50_000
"""Newest values that a process remembers of what it accepted, for when Valkey is down; some 400 bytes each."""
LATEST_ABSENT_SECONDS = 5.0
"""That nothing is known of a uuid is believed for this long, unless Valkey knows better."""
LATEST_UNSHARED_MAX = 100_000
"""Newest values that wait for Valkey to come back; past it all that Valkey holds of them is read anew."""
LATEST_SHARED_AGAIN_SECONDS = 1.0
"""Newest values that could not be shared are tried again no more often than this."""
LEDGER_PORTION_ROWS = 5_000
"""Rows handed to the catalog's database at once, so that a batch with a million rejections needs little memory."""
PURGE_PORTION_ROWS = 1_000
"""Rows forgotten in one transaction, so that a purge never holds up the receipts for long."""
IDEMPOTENCY_CLAIM_SECONDS = 600
"""A claim of an idempotency key by a process that died ends after this."""
CATALOG_POSTGRES_CONNECTIONS_KEPT = 4
CATALOG_POSTGRES_CONNECTIONS_MAX = 16
"""Connections of one process to a catalog on PostgreSQL, which serves 100 by default; who needs one more waits."""
CATALOG_CONNECT_SECONDS_MAX = 4
"""Longest wait for a connection."""
CATALOG_PING_SECONDS = 1.0
"""A connection that was not used for this long is asked whether it is still there."""
CATALOG_LOCK_SECONDS_MAX = 5
"""Longest wait for a row that another transaction changes."""
CATALOG_STATEMENT_SECONDS_MAX = 10
"""Longest run of one statement, by the server's own clock."""
CATALOG_ANSWER_SECONDS_MAX = 12
"""Longest wait for any answer: by then the server has hung, or the way to it is cut."""
CATALOG_AFTERTHOUGHT_SECONDS_MAX = 0.5
"""Longest that a request which is durable waits for its receipt, and for the look-up of what was the newest before it:
they go on without it."""
CATALOG_IDLE_TRANSACTION_SECONDS_MAX = 15
"""A transaction whose process says nothing for this long is ended: it may hold rows that everybody waits for."""
CATALOG_MIGRATION_SECONDS_MAX = 3600
"""Longest wait of a migration for another one, and longest run of one of its statements."""
CATALOG_ATTEMPTS_MAX = 5
"""Tries of a transaction that met another one."""
CATALOG_PAUSE_SECONDS = 1.0
"""While the catalog cannot be reached, one call in this time tries, and the others fail at once."""

# --- Valkey -------------------------------------------------------------------------------------------------------
VALKEY_SECONDS_MAX = 0.5
"""Longest wait for a connection to Valkey, and for an answer of it: requests wait for some of them."""
VALKEY_PAUSE_SECONDS = 1.0
"""While Valkey is down, one call in this time tries, and the others fail at once."""
VALKEY_CONNECTIONS_MAX = 128
"""Connections of one process to Valkey: more than there are threads that use it."""
PUBSUB_WAITING_BYTES_MAX = 16 * MIB
"""Messages waiting to be sent to Valkey; past it the oldest go."""
PUBSUB_SENT_AT_ONCE = 200
"""Messages sent to Valkey in one go."""
PUBSUB_LISTENERS_SECONDS = 1.0
"""How often it is asked whether a channel has listeners; who begins to listen says so itself."""
PUBSUB_RECONNECT_SECONDS_FIRST = 0.05
PUBSUB_RECONNECT_SECONDS_MAX = 1.0
"""Pauses between tries to subscribe again after an outage."""
PUBSUB_SILENCE_SECONDS_MAX = 4.0
"""A subscription that brings nothing for half of this is asked for a sign of life; after all of it, it is made anew."""
PUBSUB_CLOSE_SECONDS = 2.0
"""How long closing waits for what is still to be sent, and opening for the first connection."""

# --- command line (a client of the HTTP API) ----------------------------------------------------------------------
CLIENT_TIMEOUT_SECONDS = 90
"""Longest silence of the server; it must exceed PREFER_WAIT_SECONDS_MAX."""
CLIENT_ATTEMPTS_MAX = 8
"""Tries of one request; with the back-off below they span about 40 seconds."""
CLIENT_BACKOFF_SECONDS_FIRST = 0.5
CLIENT_BACKOFF_SECONDS_MAX = 30.0
CLIENT_RETRY_AFTER_SECONDS_MAX = 300.0
"""A server that asks for more patience than this is reported instead."""
CLIENT_ANSWER_BYTES_MAX = 512 * MIB
"""Largest answer taken; a history page of PAGE_ROWS_MAX rows is about 40 MiB."""
CLIENT_GZIP_BYTES_MIN = 1 * KIB
"""Smaller bodies are sent as they are."""
SOURCE_LINE_BYTES_MAX = 1 * MIB
"""Longest line of an imported CSV file; a longer one is refused and skipped."""
SOURCE_READ_BYTES = 256 * KIB
"""Bytes of an imported file read at once."""
BAD_ROWS_SHOWN_MAX = 10
"""Refused rows shown on the terminal; all of them are in the refused file."""
SIMULATED_LATE_ROWS_MAX = 20_000_000
"""Readings that a simulated fleet may hold back to send late."""

# --- moving an installation ---------------------------------------------------------------------------------------
ARCHIVE_PAGE_READINGS = 200_000
"""Readings of one page of an archive, written in one transaction when they come in; some 20 MB as columns."""
ARCHIVE_SENSORS_AT_ONCE = 50_000
"""Sensors asked for at once while readings are exported: their uuids go into every question."""
ARCHIVE_HOURS = 100_000
"""Hourly buckets moved at once; each takes some 120 bytes."""
ARCHIVE_DAYS = 25_000
"""Daily buckets moved at once; each holds its distribution and takes some 500 bytes."""
ARCHIVE_CATALOG_ROWS = 5_000
"""Rows of the catalog read or written at once."""
ARCHIVE_CHUNK_BYTES = 1 * MIB
"""Bytes of an archive read at once while it is verified."""
ARCHIVE_MANIFEST_BYTES_MAX = 64 * MIB
"""Longest manifest read; a century of days takes 7 MiB."""

# --- time series store --------------------------------------------------------------------------------------------
LATE_AFTER_HOURS = 3
"""A reading this much older than the newest known one is late: the embedded store stages it and merges it by day."""
ROLL_DELAY_SECONDS = 300
"""An hour or day is rolled up once the newest reading is this far past its end."""
ROLL_IDLE_SECONDS = 600
"""Where nothing was written for this long, the wall clock decides that an hour is over."""
DAY_CLOSE_DAYS = 3
"""A day is put in (sensor, time) order, run by run, once the newest reading is this far past its end."""
RUN_READINGS_MIN = 50_000
"""Readings of one day written together that are put in (sensor, time) order first: a sensor of a day is then found in
some thirty places at most."""
RUN_READINGS_MAX = 2 * DUCKDB_ROW_GROUP_ROWS
"""Readings of a closed day put in order in one transaction, some 0.1 s long: two of DuckDB's row groups."""
RETENTION_QUIET_SECONDS = 24 * 3600
"""A day past the raw retention is kept until nothing was written to it for this long, so that a backfill stays exact
while it runs."""
BATCH_IDS_KEPT_DAYS = 7
"""The store answers a redelivered batch with its first counts for this long."""
SETTLE_READINGS_MAX = 500_000
"""Late readings merged in one transaction, so that memory stays bounded."""
ROLL_READINGS_MAX = 2_000_000
"""Raw readings aggregated at once: the state of exact percentiles holds every one of them and cannot spill."""
MAINTAIN_AT_ONCE_SECONDS = 0.05
"""A call of `maintain` begins no further transaction after this: writes wait for it. Each takes up to 0.2 s."""
REDO_READINGS_MAX = 500_000
"""Raw readings of which changed buckets are computed anew in one transaction, some 0.15 s long."""
SUMMARY_EXACT_DAYS_MAX = 2
"""Longest range summarized from raw, percentiles too."""
SUMMARY_HOURS_DAYS_MAX = 14
"""Longest range summarized from hours; longer ones take whole days."""
STATEMENTS_KEPT_MAX = 128
STATEMENT_CHARS_KEPT_MAX = 2_000
"""Statements that DuckDB has parsed are kept, so many of at most so many characters each, which take up to 30 bytes for
each character. Statements over many days are longer, and their parsing is little of what they cost."""
