//! SIGINT and SIGTERM: the first one stops the work in an orderly way, the second one ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use sluice::crash::leave;
use sluice::flow::StopSignal;

use super::exit;

/// The part of the grace that is reserved for the exit itself.
const EXIT_TIME: Duration = Duration::from_millis(200);

/// The exit code of a signal, as shells count it.
pub fn code_of_signal(signal: i32) -> u8 {
    if signal == SIGTERM { exit::TERMINATED } else { exit::INTERRUPTED }
}

/// The first SIGINT or SIGTERM logs what is `said` and sets `stop`; the second, or the end of `grace`, ends the process.
/// Returns where the first signal is stored.
///
/// It ends without destructors, since an engine may still use what they would free.
pub fn stop_on_signals(
    stop: &StopSignal,
    said: &'static str,
    grace: Option<Duration>,
) -> anyhow::Result<Arc<AtomicI32>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let received = Arc::new(AtomicI32::new(0));
    let (stop, first) = (stop.clone(), Arc::clone(&received));
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // an error may stop the work, too, so only signals count
            if first.swap(signal, Relaxed) != 0 {
                leave(code_of_signal(signal));
            }
            stop.drain();
            tracing::warn!("{said}");
            if let Some(grace) = grace {
                std::thread::spawn(move || {
                    std::thread::sleep(grace.saturating_sub(EXIT_TIME));
                    tracing::error!("the work in flight took longer than --grace; exiting without it");
                    leave(code_of_signal(signal));
                });
            }
        }
    });
    Ok(received)
}
