//! What a part's footer says: the keys of its metadata.

/// Version of the columns, raised whenever a column is added, removed or changes its meaning.
pub const SCHEMA_VERSION: &str = "2";

/// Keys of every footer: [`SCHEMA_VERSION`], the run, SHA-256 over what determines the predictions, and the rows before
/// the footer, as a [`super::upload::Body`].
pub const SCHEMA: &str = "sluice.schema_version";
pub const RUN_ID: &str = "sluice.run_id";
pub const PLAN: &str = "sluice.plan_sha256";
pub const BODY: &str = "sluice.body";

/// Keys of a predictions part's footer: the number of the attempt that stored it; the name, identity, version (ETag or
/// generation), size and format of its shard; its rows by status as JSON; why the shard ended early, if it did; what the
/// shard holds that is no record, by kind as JSON, if there is any; and the class names in output order as a JSON array,
/// if the model has any.
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
