//! How data moves between stages: bounded channels with meters, slots, byte budgets, stop rules, named threads.
//!
//! Nothing here depends on images.
//!
//! - Every queue is bounded; its bound and the reason are in `pipeline.rs`, where it is made.
//! - A stage ends when the one before it ends. A stage that fails drops its channel ends, so its neighbours end, too,
//!   and the run returns the first fault. The items in its queue are dropped with it, so nobody waits for them.

mod arrivals;
mod budget;
mod channel;
mod lock;
mod meter;
mod slot;
mod stop;
mod thread;

pub use arrivals::Arrivals;
pub use budget::{Account, Budget, BudgetLimits, Permit};
pub use channel::{Arrival, Disconnected, Halt, Receiver, Sender, channel, hand_over};
pub use lock::lock;
pub use meter::{StageMeter, StageShare};
pub use slot::{Filler, Slot, slot};
pub use stop::StopSignal;
pub use thread::{spawn_named, spawn_stage};
