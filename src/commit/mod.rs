//! The commit protocol: how attempts that are killed, repeated and shared leave one whole output.

mod attempts;
mod checkpoints;
mod claim;
mod crashes;
mod fence;
mod finish;
mod footer;
mod history;
mod listing;
mod lookup;
mod names;
mod obstacles;
mod output;
mod record;
mod resume;
mod segments;
mod state;
mod stored_part;
mod takeover;
#[cfg(test)]
mod testing;
mod upload;
mod verify;

pub use attempts::{AttemptNote, Notes, attempt_name};
pub use checkpoints::{Checkpoints, Segment};
pub use claim::Claim;
pub use crashes::Crashes;
pub(crate) use finish::Ending;
pub use finish::{RunReport, StoredManifest, StoredSummary};
pub use footer::SCHEMA_VERSION;
pub(crate) use footer::{
    ATTEMPT, BODY, DAMAGE, LABELS, PLAN, ROWS_BY_STATUS, RUN_ID, SCHEMA, SHARD, SHARD_BYTES, SHARD_FORMAT,
    SHARD_IDENTITY, SHARD_VERSION, SKIPPED,
};
pub use history::{ShardHistory, shard_history};
pub use listing::{ObjectEntry, OutputListing};
pub use names::{part_name, part_name_of, shard_index, shard_of_part, short_identity};
pub use output::{MANIFEST, Output, SUCCESS, json};
pub use record::{RUN, RunRecord};
pub use resume::{Done, Listed, Remaining, Share};
pub(crate) use segments::{READ_BYTES, read_segment};
pub use state::RunState;
pub(crate) use takeover::{DamagedPart, TakenOver};
pub(crate) use upload::{PendingUpload, Stored, UPLOAD_BYTES, Upload};
pub use verify::{Verification, verify};
