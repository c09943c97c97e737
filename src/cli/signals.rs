//! SIGINT and SIGTERM: the first one stops the work in an orderly way, the second one ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use sluice::crash::leave;
use sluice::error::ConfigError;

use super::exit;

/// A day: longer than any platform waits.
const MAX_GRACE_SECONDS: f64 = 86_400.0;

/// The part of the grace that is reserved for the exit itself.
const EXIT_TIME: Duration = Duration::from_millis(200);

/// The exit code of a signal, as shells count it.
pub fn code_of_signal(signal: i32) -> u8 {
    if signal == SIGTERM { exit::TERMINATED } else { exit::INTERRUPTED }
}

/// The value of `--grace`.
///
/// # Errors
/// If it is not between 0 and [`MAX_GRACE_SECONDS`].
pub fn checked_grace(seconds: f64) -> Result<Duration, ConfigError> {
    if !(0.0..=MAX_GRACE_SECONDS).contains(&seconds) {
        let message = format!("must be between 0 and {MAX_GRACE_SECONDS} seconds");
        return Err(ConfigError::Argument { argument: "--grace", message });
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// The first SIGINT or SIGTERM calls `stop` and logs what is `said`; the second, or the end of `grace`, ends the process.
/// Returns where the first signal is stored.
///
/// It ends without destructors, since an engine may still use what they would free.
pub fn stop_on_signals(
    stop: impl FnOnce() + Send + 'static,
    said: &'static str,
    grace: Option<Duration>,
) -> anyhow::Result<Arc<AtomicI32>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let received = Arc::new(AtomicI32::new(0));
    let (mut stop, first) = (Some(stop), Arc::clone(&received));
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // an error may stop the work, too, so only signals count
            if first.swap(signal, Relaxed) != 0 {
                leave(code_of_signal(signal));
            }
            if let Some(stop) = stop.take() {
                stop();
            }
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
