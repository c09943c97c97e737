//! The URNs of Beam's transforms, coders and environments that sluice uses, and its own.

/// The transform that other SDKs use.
pub const TRANSFORM: &str = "sluice:transform:score:v1";

/// Our functions, each the `do_fn` of a ParDo.
pub const START: &str = "sluice:fn:start:v1";
pub const KEY: &str = "sluice:fn:key:v1";
pub const LIST: &str = "sluice:fn:list:v1";
pub const LIST_GIVEN: &str = "sluice:fn:list_given:v1";
pub const UNGROUP: &str = "sluice:fn:ungroup:v1";
pub const SCORE: &str = "sluice:fn:score:v1";
pub const FINISH: &str = "sluice:fn:finish:v1";
pub const REPORT: &str = "sluice:fn:report:v1";

/// Transforms.
pub const SOURCE: &str = "beam:runner:source:v1";
pub const SINK: &str = "beam:runner:sink:v1";
pub const PAR_DO: &str = "beam:transform:pardo:v1";
pub const IMPULSE: &str = "beam:transform:impulse:v1";
pub const GROUP_BY_KEY: &str = "beam:transform:group_by_key:v1";
pub const RESHUFFLE: &str = "beam:transform:reshuffle:v1";
pub const FLATTEN: &str = "beam:transform:flatten:v1";

/// Coders.
pub const BYTES: &str = "beam:coder:bytes:v1";
pub const STRING: &str = "beam:coder:string_utf8:v1";
pub const VARINT: &str = "beam:coder:varint:v1";
pub const KV: &str = "beam:coder:kv:v1";
pub const ITERABLE: &str = "beam:coder:iterable:v1";
pub const STATE_BACKED_ITERABLE: &str = "beam:coder:state_backed_iterable:v1";
pub const LENGTH_PREFIX: &str = "beam:coder:length_prefix:v1";
pub const NULLABLE: &str = "beam:coder:nullable:v1";
pub const GLOBAL_WINDOW: &str = "beam:coder:global_window:v1";
pub const INTERVAL_WINDOW: &str = "beam:coder:interval_window:v1";
pub const WINDOWED_VALUE: &str = "beam:coder:windowed_value:v1";
pub const GLOBAL_WINDOWS: &str = "beam:window_fn:global_windows:v1";

/// Environments.
pub const PROCESS: &str = "beam:env:process:v1";
pub const EXTERNAL: &str = "beam:env:external:v1";
pub const DOCKER: &str = "beam:env:docker:v1";

/// Artifacts.
pub const FILE: &str = "beam:artifact:type:file:v1";
pub const STAGING_TO: &str = "beam:artifact:role:staging_to:v1";

/// Protocols that our workers support.
pub const PROGRESS_REPORTING: &str = "beam:protocol:progress_reporting:v1";
pub const MULTI_CORE_BUNDLES: &str = "beam:protocol:multi_core_bundle_processing:v1";

/// Metrics.
pub const USER_SUM: &str = "beam:metric:user:sum_int64:v1";
