//! The keys of the metadata in a part's footer.

/// Version of the columns, raised whenever a column is added, removed or changes its meaning.
pub const SCHEMA_VERSION: &str = "2";

/// Keys of every footer: [`SCHEMA_VERSION`], the run, SHA-256 over what determines the predictions, and length and
/// checksum of the bytes before the footer, as a [`super::body::Body`].
pub const SCHEMA: &str = "sluice.schema_version";
pub const RUN_ID: &str = "sluice.run_id";
pub const PLAN: &str = "sluice.plan_sha256";
pub const BODY: &str = "sluice.body";

/// Keys of a predictions part's footer: the number of the attempt that stored it; the name, identity, version (ETag or
/// generation), size and format of its shard; its rows by status as JSON; why the shard ended early, if it did; the
/// number of its entries that are not records, by kind as JSON, if there are any; and the class names in output order
/// as a JSON array, if the model has any.
pub const ATTEMPT: &str = "sluice.attempt";
pub const SHARD: &str = "sluice.shard";
pub const SHARD_IDENTITY: &str = "sluice.shard_identity";
pub const SHARD_VERSION: &str = "sluice.shard_version";
pub const SHARD_BYTES: &str = "sluice.shard_bytes";
pub const SHARD_FORMAT: &str = "sluice.shard_format";
pub const ROWS_BY_STATUS: &str = "sluice.rows_by_status";
pub const DAMAGE: &str = "sluice.damage";
pub const SKIPPED: &str = "sluice.skipped";
pub const LABELS: &str = "sluice.labels";
