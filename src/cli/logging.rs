//! Log lines: text for people, JSON objects with `severity` and `message` for log collectors.
//!
//! - Every message and field passes through here, which removes the secrets of addresses and the control characters
//!   that names of objects and servers' messages may contain.
//! - A log that cannot be written does not stop the process.

use std::fmt;
use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::{Map, Value};
use sluice::shown::{message_without_secrets, printable, printable_json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::progress::Progress;

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Log to standard error, above the progress bar if there is one. `RUST_LOG` sets the level; without it, `verbose`
/// includes TensorRT's messages.
pub fn init(format: LogFormat, verbose: bool, colors: bool, progress: &Progress) {
    let level = if verbose { "info,ort=warn,sluice=debug,tensorrt=trace" } else { "info,ort=warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AboveBar(progress.clone()))
        .log_internal_errors(false)
        .with_ansi(colors);
    match format {
        LogFormat::Text => {
            start(
                builder.with_target(false).compact().fmt_fields(debug_fn(text_field).delimited(" ")).finish(),
            );
        }
        LogFormat::Json => start(builder.event_format(JsonLines).finish()),
    }
    // a panic in a codec rejects one image, whose row says so; any other panic also becomes an error
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| place(at.file(), at.line())).unwrap_or_default();
        tracing::warn!("panic{place}: {}", panic.payload_as_str().unwrap_or("no message"));
    }));
}

/// Log through `subscriber`, and to the runners of Beam that this process works for.
fn start(subscriber: impl Subscriber + Send + Sync) {
    #[cfg(feature = "beam")]
    let subscriber = tracing_subscriber::layer::SubscriberExt::with(subscriber, ToRunners);
    tracing_subscriber::util::SubscriberInitExt::init(subscriber);
}

/// Sends lines to the runners of Beam that this process works for.
#[cfg(feature = "beam")]
struct ToRunners;

#[cfg(feature = "beam")]
impl<S: Subscriber> tracing_subscriber::Layer<S> for ToRunners {
    fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        sluice::beam::send_to_runners(*metadata.level(), metadata.target(), &(line.message + &line.fields));
    }
}

/// A line of text: the message, and then the other fields.
#[cfg(feature = "beam")]
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

#[cfg(feature = "beam")]
impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        let value = message_without_secrets(&value);
        let value = printable(&value);
        if field.name() == "message" {
            self.message = value.into_owned();
        } else {
            self.fields.push_str(&format!(" {}={value}", field.name()));
        }
    }
}

/// Where a panic comes from: a line of this crate, or the name of another one, without folders of the build machine.
fn place(file: &str, line: u32) -> String {
    let mut folders = file.split(['/', '\\']);
    if folders.clone().next() == Some("src") {
        return format!(" at {file}:{line}");
    }
    let is_root = |folder: &str| folder == "library" || folder == "registry" || folder == "checkouts";
    match folders.find(|folder| is_root(folder)) {
        Some("library") => " in the standard library".to_owned(),
        // …/registry/src/INDEX/NAME-VERSION/… and …/git/checkouts/NAME-HASH/…
        Some(root) => {
            let name = if root == "registry" { folders.nth(2) } else { folders.next() };
            name.map(|name| format!(" in {name}")).unwrap_or_default()
        }
        None => String::new(),
    }
}

/// One field of a line of text. The message is written without its field name.
fn text_field(out: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    let value = message_without_secrets(&value);
    let value = printable(&value);
    if field.name() == "message" { write!(out, "{value}") } else { write!(out, "{}={value}", field.name()) }
}

/// Writes whole lines while the progress bar is hidden.
#[derive(Clone)]
struct AboveBar(Progress);

impl Write for AboveBar {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // an error of the log cannot be reported anywhere
        let _ = self.0.suspend(|| io::stderr().write_all(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for AboveBar {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// One JSON object per line, with the field names that Google Cloud Logging reads.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut object = Map::new();
        let severity = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "INFO",
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        let time = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now());
        object.insert("time".into(), time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true).into());
        object.insert("severity".into(), severity.into());
        event.record(&mut JsonFields(&mut object));
        object.entry("message").or_insert_with(|| Value::String(String::new()));
        writeln!(out, "{}", printable_json(&Value::Object(object).to_string()))
    }
}

struct JsonFields<'a>(&'a mut Map<String, Value>);

impl Visit for JsonFields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    // what fits 64 bits is a number, as JSON readers expect; anything longer is a string
    fn record_i128(&mut self, field: &Field, value: i128) {
        let number = i64::try_from(value).map(Value::from);
        self.0.insert(field.name().into(), number.unwrap_or_else(|_| value.to_string().into()));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        let number = u64::try_from(value).map(Value::from);
        self.0.insert(field.name().into(), number.unwrap_or_else(|_| value.to_string().into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), message_without_secrets(value).into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), message_without_secrets(&format!("{value:?}")).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_names_a_crate_and_no_folder_of_the_build_machine() {
        for (file, said) in [
            ("src/batch.rs", " at src/batch.rs:7"),
            (
                "/home/me/.cargo/registry/src/index.example-1949cf8c6b5b557f/png-0.18.0/src/decoder.rs",
                " in png-0.18.0",
            ),
            ("/home/me/.cargo/git/checkouts/tiff-0a1b2c/src/lib.rs", " in tiff-0a1b2c"),
            ("/rustc/0123abcd/library/core/src/option.rs", " in the standard library"),
            ("/somewhere/else.rs", ""),
        ] {
            assert_eq!(place(file, 7), said);
        }
    }
}
