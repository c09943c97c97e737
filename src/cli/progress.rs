//! What a waiting person sees: a bar on a terminal, a line each 30 s elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use indicatif::{ProgressBar, ProgressStyle};
use sluice::pipeline::Meters;

/// Often enough to look alive, and no load.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
/// Often enough to see a job stall, rare enough for a log that is kept.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
/// The rate shown is that of this much of the past, so that it follows what is going on.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// The one place that writes to the terminal while a run goes on.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

/// How much there is to do, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Total {
    /// Records, if the run is limited to a number of them.
    pub records: Option<u64>,
    /// Bytes of input, once the listing that counts them has ended; 0 before.
    pub bytes: Arc<AtomicU64>,
}

/// A display that is being kept up to date.
pub struct Watch {
    progress: Progress,
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// A bar if standard error is a terminal.
    pub fn detect() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::hidden();
            let template = "{bar:30.cyan} {msg}";
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Self { bar }
    }

    pub fn is_terminal(&self) -> bool {
        self.bar.is_some()
    }

    /// Do `work` while the bar is off the screen.
    pub fn suspend<R>(&self, work: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }

    /// Show the run that `meters` count until the returned watch is dropped.
    pub fn watch(&self, meters: Meters, total: Total) -> Watch {
        let (stop, stopped) = bounded(0);
        let progress = self.clone();
        let thread = std::thread::spawn(move || {
            let interval = if progress.is_terminal() { BAR_INTERVAL } else { LINE_INTERVAL };
            if let Some(bar) = &progress.bar {
                bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            }
            let mut rate = Rate::default();
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                progress.show(&State::read(&meters, &total, &mut rate));
            }
        });
        Watch { progress: self.clone(), stop, thread: Some(thread) }
    }

    fn show(&self, state: &State) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(1000);
                bar.set_position((state.done.unwrap_or_default() * 1000.0) as u64);
                bar.set_message(state.words());
            }
            None => tracing::info!(
                images = state.records,
                images_per_second = state.rate.round(),
                errors = state.errors,
                eta_seconds = state.eta().map(|eta| eta.as_secs()),
                "{}",
                state.words()
            ),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // a display that has already gone needs no telling
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(bar) = &self.progress.bar {
            bar.finish_and_clear();
        }
    }
}

/// One look at the run.
#[derive(Debug, Clone, PartialEq)]
struct State {
    records: u64,
    errors: u64,
    rate: f64,
    /// Share of the run that is done, if its total is known.
    done: Option<f64>,
    elapsed: Duration,
}

impl State {
    fn read(meters: &Meters, total: &Total, rate: &mut Rate) -> Self {
        let (records, bytes) = (meters.decode.items(), meters.decode.bytes());
        let by_records = total.records.map(|limit| records as f64 / limit.max(1) as f64);
        let all_bytes = total.bytes.load(Relaxed);
        let by_bytes = (all_bytes > 0).then(|| bytes as f64 / all_bytes as f64);
        let done = [by_records, by_bytes].into_iter().flatten().reduce(f64::max);
        let (rate, elapsed) = rate.update(records, Instant::now());
        Self {
            records,
            errors: meters.decode.rejected(),
            rate,
            done: done.map(|done| done.min(1.0)),
            elapsed,
        }
    }

    fn eta(&self) -> Option<Duration> {
        let done = self.done.filter(|&done| done > 0.0)?;
        Some(self.elapsed.mul_f64((1.0 - done) / done))
    }

    fn words(&self) -> String {
        let eta = self.eta().map(|eta| format!(", {} left", clock(eta))).unwrap_or_default();
        format!("{} images, {:.0} images/s, {} errors{eta}", self.records, self.rate, self.errors)
    }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Images per second over the last [`RATE_WINDOW`].
#[derive(Debug, Default)]
struct Rate {
    started: Option<Instant>,
    samples: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    /// The current rate and the time since the first look.
    fn update(&mut self, records: u64, now: Instant) -> (f64, Duration) {
        let started = *self.started.get_or_insert(now);
        self.samples.push_back((now, records));
        while self.samples.len() > 2 && now - self.samples[1].0 >= RATE_WINDOW {
            self.samples.pop_front();
        }
        let (since, before) = self.samples[0];
        let seconds = (now - since).as_secs_f64();
        let rate = if seconds > 0.0 { (records - before) as f64 / seconds } else { 0.0 };
        (rate, now - started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_forgets_what_is_older_than_its_window() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.update(0, start);
        rate.update(1000, start + Duration::from_secs(1));
        let (now, elapsed) = rate.update(1050, start + Duration::from_secs(11));
        assert_eq!((now, elapsed), (5.0, Duration::from_secs(11)));
    }

    #[test]
    fn what_is_left_follows_from_what_is_done() {
        let state =
            State { records: 10, errors: 1, rate: 5.0, done: Some(0.25), elapsed: Duration::from_secs(100) };
        assert_eq!(state.words(), "10 images, 5 images/s, 1 errors, 0:05:00 left");
    }
}
