//! How data moves between stages: bounded channels with meters, slots, byte budgets, stop rules, named threads.
//!
//! Knows nothing of images.
//!
//! - Every queue is bounded; its bound and the reason stand where it is made, in `pipeline.rs`.
//! - A stage ends when the one before it hangs up; a stage that fails drops its channel ends, so
//!   its neighbours end too, and the first fault is what the run returns.

mod arrivals;
mod budget;
mod channel;
mod meter;
mod slot;
mod stop;
mod thread;

pub use arrivals::Arrivals;
pub use budget::{Account, Budget, BudgetLimits, Permit};
pub use channel::{Disconnected, Halt, Receiver, Sender, channel, hand_over};
pub use meter::{StageMeter, StageShare};
pub use slot::{Filler, Slot, slot};
pub use stop::StopSignal;
pub use thread::{spawn_named, spawn_stage};
