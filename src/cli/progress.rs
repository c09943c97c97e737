//! Progress of a run: a bar on a terminal, a log line every 30 s elsewhere.

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sluice::progress::{Counts, ProgressCounters};

use super::terminal::Terminal;

/// Often enough to look alive, too rare to cost anything.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
/// Often enough to see a job stall, rare enough for a log.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
/// The displayed rate is the mean over this window, so that it follows changes.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// An estimate needs a second listing of the input, which a short run can do without. A resumed run is estimated at
/// once.
const COUNT_AFTER: Duration = Duration::from_secs(5);

/// Owns the terminal during a run.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: Option<Bar>,
}

/// A line on the terminal.
#[derive(Debug, Clone)]
struct Bar {
    line: ProgressBar,
    /// Template once the total is known; until then the line is text only.
    with_share: &'static str,
}

/// Template without a bar.
const TEXT_ONLY: &str = "{msg}";

/// The total amount of work, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    pub records: Option<u64>,
    /// Total length of the shards' objects.
    pub bytes: Option<u64>,
}

/// Finds the total, which may take long.
pub type Count = Box<dyn FnOnce() -> Total + Send>;

/// A display that is updated until it is dropped.
pub struct Watch {
    progress: Progress,
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// A display, with a bar if standard error is a terminal that can move its cursor.
    pub fn detect(terminal: Terminal) -> Self {
        let template = if terminal.colors { "{bar:30.cyan} {msg}" } else { "{bar:30} {msg}" };
        let bar = terminal.moves_cursor.then(|| {
            let line = ProgressBar::hidden();
            line.set_style(style(TEXT_ONLY));
            Bar { line, with_share: template }
        });
        Self { bar }
    }

    /// Do `work` while the bar is hidden.
    pub fn suspend<R>(&self, work: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.line.suspend(work),
            None => work(),
        }
    }

    /// Show the progress in `counters` until the returned watch is dropped. `count` is called on another thread once
    /// the run has lasted for a while.
    pub fn watch(&self, counters: Arc<ProgressCounters>, count: Count) -> Watch {
        let (stop, stopped) = bounded(0);
        let progress = self.clone();
        let thread = std::thread::spawn(move || {
            if let Some(bar) = &progress.bar {
                bar.line.set_draw_target(ProgressDrawTarget::stderr());
            }
            let interval = if progress.bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL };
            let started = Instant::now();
            let (mut rate, total) = (Rate::since(started), Arc::new(OnceLock::new()));
            let (mut count, mut next_update) = (Some(count), started + interval);
            loop {
                let next = count.as_ref().map_or(next_update, |_| next_update.min(started + COUNT_AFTER));
                if stopped.recv_deadline(next) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                let now = Instant::now();
                if is_worth_counting(now - started, counters.counts())
                    && let Some(count) = count.take()
                {
                    let total = Arc::clone(&total);
                    std::thread::spawn(move || total.set(count()));
                }
                if now >= next_update {
                    let total = total.get().copied().unwrap_or_default();
                    progress.show(&State::new(counters.counts(), total, &mut rate, now));
                    next_update = now + interval;
                }
            }
        });
        Watch { progress: self.clone(), stop, thread: Some(thread) }
    }

    fn show(&self, state: &State) {
        match &self.bar {
            Some(Bar { line, with_share }) => {
                line.set_message(state.words());
                if let Some(done) = state.done {
                    line.set_length(1000);
                    line.set_position((done * 1000.0) as u64);
                    // last, so that no bar is drawn that contradicts the text
                    line.set_style(style(with_share));
                }
            }
            None => tracing::info!(
                images = state.counts.rows,
                reused = state.counts.reused_rows,
                images_per_second = state.rate.round() as u64,
                errors = state.counts.rejected,
                percent = state.percent(),
                eta_seconds = state.eta.map(|eta| eta.as_secs()),
                "{}",
                state.words()
            ),
        }
    }
}

/// Whether it is time to find the total.
fn is_worth_counting(elapsed: Duration, counts: Counts) -> bool {
    elapsed >= COUNT_AFTER || counts.reused_rows > 0
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Drop for Watch {
    fn drop(&mut self) {
        // the thread may have ended already
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(bar) = &self.progress.bar {
            bar.line.finish_and_clear();
        }
    }
}

/// A snapshot of the run.
#[derive(Debug, Clone, PartialEq)]
struct State {
    counts: Counts,
    /// Images per second, of this attempt only.
    rate: f64,
    /// Share of the run that is done, if the total is known.
    done: Option<f64>,
    eta: Option<Duration>,
}

impl State {
    fn new(counts: Counts, total: Total, rate: &mut Rate, now: Instant) -> Self {
        let share = |done: u64, reused: u64, total: Option<u64>| {
            let total = total.filter(|&total| total > 0)? as f64;
            Some((done as f64 / total, reused as f64 / total))
        };
        // the number of images predicts the time best; where it is unknown, bytes come close
        let (done, reused) = share(counts.rows, counts.reused_rows, total.records)
            .or_else(|| share(counts.bytes, counts.reused_bytes, total.bytes))
            .unzip();
        let elapsed = now - rate.started;
        let eta = done.zip(reused).and_then(|(done, reused)| {
            let (this_attempt, left) = (done - reused, (1.0 - done).max(0.0));
            (this_attempt > 0.0).then(|| elapsed.mul_f64(left / this_attempt))
        });
        Self {
            counts,
            rate: rate.update(counts.rows - counts.reused_rows, now),
            done: done.map(|done| done.min(1.0)),
            eta,
        }
    }

    fn percent(&self) -> Option<u64> {
        // 100 only when everything is done
        self.done.map(|done| (done * 100.0) as u64)
    }

    fn words(&self) -> String {
        let Counts { rows, rejected, .. } = self.counts;
        let done = self.percent().map(|percent| format!(", {percent}%")).unwrap_or_default();
        let eta = self.eta.map(|eta| format!(", {} left", clock(eta))).unwrap_or_default();
        format!("{rows} images, {:.0} images/s, {rejected} errors{done}{eta}", self.rate)
    }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Images per second over the last [`RATE_WINDOW`], or since the last update if that is longer ago.
#[derive(Debug)]
struct Rate {
    started: Instant,
    samples: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    /// A rate whose first sample is zero images at `started`.
    fn since(started: Instant) -> Self {
        Self { started, samples: [(started, 0)].into() }
    }

    fn update(&mut self, images: u64, now: Instant) -> f64 {
        self.samples.push_back((now, images));
        while self.samples.len() > 2 && now - self.samples[1].0 >= RATE_WINDOW {
            self.samples.pop_front();
        }
        let (since, before) = self.samples[0];
        let seconds = (now - since).as_secs_f64();
        if seconds > 0.0 { images.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_rate_ignores_samples_older_than_its_window() {
        let start = Instant::now();
        let mut rate = Rate::since(start);
        assert_eq!(rate.update(1000, start + SECOND), 1000.0);
        assert_eq!(rate.update(1050, start + 11 * SECOND), 5.0);
        assert_eq!(
            rate.update(1050 + 60, start + 41 * SECOND),
            2.0,
            "lines are farther apart than the window"
        );
    }

    #[test]
    fn the_first_line_has_a_rate_a_share_and_the_time_left() {
        let start = Instant::now();
        let counts = Counts { rows: 300, rejected: 1, bytes: 250, ..Counts::default() };
        let total = Total { records: None, bytes: Some(1000) };
        let state = State::new(counts, total, &mut Rate::since(start), start + 30 * SECOND);
        assert_eq!(state.words(), "300 images, 10 images/s, 1 errors, 25%, 0:01:30 left");
        let unknown = State::new(counts, Total::default(), &mut Rate::since(start), start + 30 * SECOND);
        assert_eq!(unknown.words(), "300 images, 10 images/s, 1 errors");
    }

    #[test]
    fn a_bar_starts_at_the_rows_of_earlier_attempts() {
        let counts = Counts { rows: 500, reused_rows: 500, ..Counts::default() };
        assert!(is_worth_counting(Duration::ZERO, counts));
        assert!(!is_worth_counting(SECOND, Counts { rows: 500, ..Counts::default() }));
        let progress = Progress::detect(Terminal { colors: false, moves_cursor: true });
        let line = || &progress.bar.as_ref().expect("a bar").line;
        let start = Instant::now();
        let mut rate = Rate::since(start);
        progress.show(&State::new(counts, Total::default(), &mut rate, start));
        assert_eq!((line().position(), line().message()), (0, "500 images, 0 images/s, 0 errors".to_owned()));
        let total = Total { records: Some(2000), bytes: None };
        progress.show(&State::new(counts, total, &mut rate, start + SECOND));
        assert_eq!((line().position(), line().length()), (250, Some(1000)));
        assert_eq!(line().message(), "500 images, 0 images/s, 0 errors, 25%");
    }

    #[test]
    fn rows_of_earlier_attempts_count_as_done_but_not_in_the_rate() {
        let start = Instant::now();
        let counts = Counts { rows: 600, rejected: 0, reused_rows: 500, bytes: 0, reused_bytes: 0 };
        let total = Total { records: Some(1000), bytes: Some(77) };
        let state = State::new(counts, total, &mut Rate::since(start), start + 10 * SECOND);
        assert_eq!(state.words(), "600 images, 10 images/s, 0 errors, 60%, 0:00:40 left");
        let nothing_new = Counts { rows: 500, ..counts };
        let state = State::new(nothing_new, total, &mut Rate::since(start), start + 10 * SECOND);
        assert_eq!((state.percent(), state.eta), (Some(50), None));
    }
}
