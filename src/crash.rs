//! A decoder or a shard reader that crashes takes its process down, but not unseen: the record it was at is
//! printed on standard error and passed to the watcher, which has `LAST_WORDS_SECONDS` to note it.
//!
//! - The thread that crashed never runs again, so nothing that it leaves half done is used. The others go
//!   on until the watcher leaves; they may hang on a lock that the crash has left taken, and then the
//!   alarm ends the process.
//! - A crash elsewhere is reported, too, and ends the process as it would have without this handler.
//! - The handler calls only what POSIX allows there: it takes no lock and no memory.
#![allow(unsafe_code, reason = "signal handlers, and what a crashed thread was at work on")]

use std::cell::Cell;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicI32, AtomicPtr, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use libc::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, c_int, c_void, siginfo_t};

use crate::items::{RecordMeta, ShardRef};

/// What a crash sends to the thread that it happens in.
const CRASHES: [c_int; 5] = [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV];

/// From the crash to the end of the process, at the latest. A small object is stored within a second, and
/// an hour of other shards is not worth more waiting.
const LAST_WORDS_SECONDS: u32 = 10;

/// What the process ends with if the watcher does not end it: nothing is noted, so the next attempt meets the same
/// record, and a retry is no progress.
const NOT_NOTED: u8 = 1;

/// What a thread does with bytes from outside.
#[derive(Debug)]
pub(crate) enum Work<'a> {
    /// It decodes the image of this record.
    Decoding(&'a RecordMeta),
    /// It reads this shard.
    Reading(&'a Reading),
}

/// A shard that is being read.
#[derive(Debug)]
pub(crate) struct Reading {
    shard: Arc<ShardRef>,
    /// Position in the shard of the record that is read next; 0 also while the shard is opened.
    next_record: AtomicU64,
}

impl Reading {
    pub fn of(shard: &Arc<ShardRef>) -> Self {
        Self { shard: Arc::clone(shard), next_record: AtomicU64::new(0) }
    }

    /// The record at `index` is read next.
    pub fn reaches(&self, index: u64) {
        self.next_record.store(index, Relaxed);
    }
}

impl Work<'_> {
    fn shard(&self) -> &Arc<ShardRef> {
        match self {
            Self::Decoding(record) => &record.shard,
            Self::Reading(reading) => &reading.shard,
        }
    }

    fn record_index(&self) -> u64 {
        match self {
            Self::Decoding(record) => record.record_index,
            Self::Reading(reading) => reading.next_record.load(Relaxed),
        }
    }
}

thread_local! {
    /// What this thread is at work on. Without a destructor, so a handler may read it at any time.
    static WORK: Cell<*const Work<'static>> = const { Cell::new(ptr::null()) };
}

/// What the first thread that crashed was at work on; it lies on the stack of that thread, which waits for ever.
static CRASHED: AtomicPtr<Work<'static>> = AtomicPtr::new(ptr::null_mut());
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Where the handler wakes the watcher up; -1 while nobody watches.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// While it lives, a crash of this thread is put down to the work.
#[derive(Debug)]
pub(crate) struct AtWork<'a>(&'a Work<'a>);

impl<'a> AtWork<'a> {
    pub fn on(work: &'a Work<'a>) -> Self {
        WORK.set(ptr::from_ref(work).cast());
        Self(work)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        debug_assert!(ptr::eq(WORK.get(), ptr::from_ref(self.0).cast()), "a thread does one thing at a time");
        WORK.set(ptr::null());
    }
}

/// Where a decoder or a reader has crashed.
#[derive(Debug, Clone)]
pub struct Crash {
    pub shard: Arc<ShardRef>,
    /// Position in the shard, from 0.
    pub record_index: u64,
    /// Of the image that was being decoded; `None` if the reader of the shard crashed.
    pub image_id: Option<String>,
    /// Number of the signal.
    pub signal: i32,
}

/// The one watcher of a process.
#[derive(Debug)]
pub struct CrashWatch(PipeReader);

impl CrashWatch {
    /// Handle the signals of crashes in this process, from now on and for good.
    ///
    /// # Errors
    /// When the system has no pipe left or refuses the handlers.
    ///
    /// # Panics
    /// If there is a watcher already.
    pub fn install() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let nobody = WAKE.compare_exchange(-1, writer.as_raw_fd(), SeqCst, SeqCst);
        assert!(nobody.is_ok(), "a process has one crash watch");
        // left open for the handler, which may come at any time
        let _ = writer.into_raw_fd();
        for signal in CRASHES {
            set_action(signal, handle as *const () as libc::sighandler_t)?;
        }
        Ok(Self(reader))
    }

    /// Wait until a decoder or a reader crashes. The process is to be left soon: [`leave`].
    ///
    /// # Errors
    /// When the pipe cannot be read.
    pub fn wait(mut self) -> io::Result<Crash> {
        self.0.read_exact(&mut [0])?;
        // SAFETY: the handler has set it to work borrowed by an `AtWork` of the thread that it ran in,
        // before it wrote to the pipe. That thread waits in the handler for ever, so the work and what it
        // borrows live as long as the process, and nobody writes to them but through an atomic.
        let work = unsafe { &*CRASHED.load(SeqCst) };
        let image_id = match work {
            Work::Decoding(record) => Some(record.image_id.clone()),
            Work::Reading(_) => None,
        };
        Ok(Crash {
            shard: Arc::clone(work.shard()),
            record_index: work.record_index(),
            image_id,
            signal: SIGNAL.load(SeqCst),
        })
    }
}

/// End the process here and now: after a crash there is no telling what a destructor would find.
pub fn leave(code: u8) -> ! {
    // SAFETY: takes no pointers and returns never.
    unsafe { libc::_exit(c_int::from(code)) }
}

/// The name of a signal that a crash sends.
pub fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGABRT => "SIGABRT",
        SIGBUS => "SIGBUS",
        SIGFPE => "SIGFPE",
        SIGILL => "SIGILL",
        SIGSEGV => "SIGSEGV",
        _ => "another signal",
    }
}

/// Have `handler` called for `signal`, on the stack that Rust gives each thread for the case that its own
/// one has overflowed.
fn set_action(signal: c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` lives through the call, and its handler, if it is one of ours, is a function of the
    // signature that SA_SIGINFO asks for.
    match unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    let work = WORK.get();
    if work.is_null() {
        say(&[b"sluice: crashed outside decoders and readers: ", signal_name(signal).as_bytes()]);
        let _ = set_action(signal, libc::SIG_DFL);
        // SAFETY: the system passes a valid siginfo to a handler that was set with SA_SIGINFO.
        if unsafe { (*info).si_code } <= 0 {
            // sent, not met: nothing repeats it when this returns
            // SAFETY: takes no pointers; the signal comes when this handler returns.
            unsafe { libc::raise(signal) };
        }
        return;
    }
    // SAFETY: set by this thread in `AtWork::on`, whose guard is in a frame below this one.
    let at = unsafe { &*work };
    let (who, image_id): (&[u8], [&[u8]; 2]) = match at {
        Work::Decoding(record) => (b"a decoder", [b", image_id ", record.image_id.as_bytes()]),
        Work::Reading(_) => (b"a reader", [b"", b""]),
    };
    let mut digits = [0; DIGITS];
    say(&[
        b"sluice: ",
        who,
        b" crashed: ",
        signal_name(signal).as_bytes(),
        b" on record ",
        decimal(at.record_index(), &mut digits),
        b" of ",
        at.shard().name.as_bytes(),
        image_id[0],
        image_id[1],
    ]);
    if CRASHED.compare_exchange(ptr::null_mut(), work.cast_mut(), SeqCst, SeqCst).is_ok() {
        SIGNAL.store(signal, SeqCst);
        // the first process of a container is not ended by an alarm that nobody handles
        let _ = set_action(libc::SIGALRM, give_up as *const () as libc::sighandler_t);
        // SAFETY: takes no pointers.
        unsafe { libc::alarm(LAST_WORDS_SECONDS) };
        write_all(WAKE.load(SeqCst), b"!");
    }
    loop {
        // SAFETY: takes no pointers.
        unsafe { libc::pause() };
    }
}

/// Time is up: the watcher has not left.
extern "C" fn give_up(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    leave(NOT_NOTED)
}

/// One line on standard error, with a question mark for what a terminal would obey.
fn say(words: &[&[u8]]) {
    for word in words {
        let mut rest = *word;
        while !rest.is_empty() {
            let (shown, hidden) = shown_first(rest);
            write_all(libc::STDERR_FILENO, &rest[..shown]);
            if hidden > 0 {
                write_all(libc::STDERR_FILENO, b"?");
            }
            rest = &rest[shown + hidden..];
        }
    }
    write_all(libc::STDERR_FILENO, b"\n");
}

/// How many of the first bytes of a text can be shown, and how many behind them are one character that cannot: those
/// that [`crate::shown::printable`] replaces, told without taking memory.
fn shown_first(text: &[u8]) -> (usize, usize) {
    for at in 0..text.len() {
        let hidden = match &text[at..] {
            [0..0x20 | 0x7f, ..] => 1,
            // U+0080 to U+009F, U+061C
            [0xc2, 0x80..=0x9f, ..] | [0xd8, 0x9c, ..] => 2,
            // U+200E, U+200F, U+2028 to U+202E, U+2066 to U+2069
            [0xe2, 0x80, 0x8e | 0x8f | 0xa8..=0xae, ..] | [0xe2, 0x81, 0xa6..=0xa9, ..] => 3,
            _ => continue,
        };
        return (at, hidden);
    }
    (text.len(), 0)
}

/// Write what can be written: in a handler nobody can be told that it cannot.
fn write_all(descriptor: c_int, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: `bytes` is valid for its own length.
        let written = unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written) if written > 0 => bytes = &bytes[written..],
            _ => return,
        }
    }
}

/// Digits of the largest `u64`.
const DIGITS: usize = 20;

/// `number` without taking memory.
fn decimal(mut number: u64, digits: &mut [u8; DIGITS]) -> &[u8] {
    let mut start = DIGITS;
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_told_from_every_other_character() {
        for character in (0..0x1_0000).filter_map(char::from_u32).filter(|c| !matches!(c, '\n' | '\t')) {
            let text = format!("a{character}b");
            let is_shown = crate::shown::printable(&text) == text;
            let expected = if is_shown { (text.len(), 0) } else { (1, character.len_utf8()) };
            assert_eq!(shown_first(text.as_bytes()), expected, "U+{:04X}", u32::from(character));
        }
    }

    #[test]
    fn numbers_are_written_without_memory() {
        for number in [0, 7, 10, 1_234_567, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; DIGITS]), number.to_string().as_bytes());
        }
    }

    #[test]
    fn an_alarm_ends_the_process_as_one_that_could_note_nothing() {
        // SAFETY: the child calls only what POSIX allows between fork and exit.
        let child = unsafe { libc::fork() };
        assert_ne!(child, -1, "{}", io::Error::last_os_error());
        if child == 0 {
            let _ = set_action(libc::SIGALRM, give_up as *const () as libc::sighandler_t);
            // SAFETY: takes no pointers.
            unsafe { libc::raise(libc::SIGALRM) };
            leave(2);
        }
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(ended, child, "{}", io::Error::last_os_error());
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1, "{status}");
    }
}
