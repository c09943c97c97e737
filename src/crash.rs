//! Names the record on which a decoder or a shard reader crashes.
//!
//! The handler of the crash's signal prints the record on standard error and passes it to a watcher, which has
//! `MAX_NOTE_SECONDS` to note it in the output before the process ends.
//!
//! - The thread that crashed never runs again, so nothing that it left half done is used. The others continue until the
//!   watcher ends the process. If they hang on a lock that the crashed thread holds, an alarm ends it.
//! - A crash elsewhere is reported, too, and ends the process as it would without this handler.
//! - The handler calls only what POSIX allows: it takes no lock and allocates nothing.
#![allow(unsafe_code, reason = "signal handlers, and the work of a crashed thread")]

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

/// The signals of a crash, sent to the thread in which it happens.
const CRASHES: [c_int; 5] = [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV];

/// The longest time from the crash to the end of the process. A small object is stored within a second, and a hanging
/// process must not block a retry.
const MAX_NOTE_SECONDS: u32 = 10;

/// The exit code if the watcher does not end the process: nothing is noted, so the next attempt crashes on the same
/// record. A retry does not help.
const NOT_NOTED: u8 = 1;

/// What a thread does with input bytes.
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
    /// Position in the shard of the next record; 0 also while the shard is opened.
    next_record: AtomicU64,
}

impl Reading {
    pub fn of(shard: &Arc<ShardRef>) -> Self {
        Self { shard: Arc::clone(shard), next_record: AtomicU64::new(0) }
    }

    /// The next record is the one at `index`.
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
    /// The work of this thread. It has no destructor, so a handler may read it at any time.
    static WORK: Cell<*const Work<'static>> = const { Cell::new(ptr::null()) };
}

/// The work of the first thread that crashed. It is on the stack of that thread, which waits forever.
static CRASHED: AtomicPtr<Work<'static>> = AtomicPtr::new(ptr::null_mut());
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// The descriptor by which the handler wakes the watcher; -1 without a watcher.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// While this guard lives, a crash of its thread is attributed to the work.
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

/// Where a decoder or a reader crashed.
#[derive(Debug, Clone)]
pub struct Crash {
    /// The shard that was being read.
    pub shard: Arc<ShardRef>,
    /// Position in the shard, from 0.
    pub record_index: u64,
    /// The image that was being decoded; `None` if the reader of the shard crashed.
    pub image_id: Option<String>,
    /// Number of the signal.
    pub signal: i32,
}

/// The one watcher of a process.
#[derive(Debug)]
pub struct CrashWatch(PipeReader);

impl CrashWatch {
    /// Handle the signals of crashes, for the rest of this process.
    ///
    /// # Errors
    /// If the system refuses a pipe or the handlers.
    ///
    /// # Panics
    /// If the process already has a watcher.
    pub fn install() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let nobody = WAKE.compare_exchange(-1, writer.as_raw_fd(), SeqCst, SeqCst);
        assert!(nobody.is_ok(), "a process has one crash watch");
        // stays open for the handler, which may run at any time
        let _ = writer.into_raw_fd();
        for signal in CRASHES {
            set_action(signal, handle as *const () as libc::sighandler_t)?;
        }
        Ok(Self(reader))
    }

    /// Wait until a decoder or a reader crashes. The caller must then end the process soon, with [`leave`].
    ///
    /// # Errors
    /// If the pipe cannot be read.
    pub fn wait(mut self) -> io::Result<Crash> {
        self.0.read_exact(&mut [0])?;
        // SAFETY: before the handler wrote to the pipe, it set `CRASHED` to work that an `AtWork` of the crashed thread
        // borrows. That thread waits in the handler forever, so the work and what it borrows live as long as the
        // process, and nothing writes to them except through an atomic.
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

/// End the process at once, without destructors: after a crash they cannot rely on anything.
pub fn leave(code: u8) -> ! {
    // SAFETY: takes no pointers and never returns.
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

/// Have `handler` called for `signal`, on the alternate stack that Rust gives each thread for stack overflows.
fn set_action(signal: c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` lives through the call; its handler is SIG_DFL or a function with the signature that SA_SIGINFO
    // requires.
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
            // sent by a process: no instruction repeats it when this returns
            // SAFETY: takes no pointers; the signal is delivered when this handler returns.
            unsafe { libc::raise(signal) };
        }
        return;
    }
    // SAFETY: `AtWork::on` set it on this thread, and its guard is in a frame below this one.
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
        // the first process of a container ignores an alarm that it does not handle
        let _ = set_action(libc::SIGALRM, give_up as *const () as libc::sighandler_t);
        // SAFETY: takes no pointers.
        unsafe { libc::alarm(MAX_NOTE_SECONDS) };
        write_all(WAKE.load(SeqCst), b"!");
    }
    loop {
        // SAFETY: takes no pointers.
        unsafe { libc::pause() };
    }
}

/// Time is up: the watcher did not end the process.
extern "C" fn give_up(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    leave(NOT_NOTED)
}

/// Write one line to standard error, with a question mark for each control character.
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

/// The length of the start of `text` that can be shown, and of the character after it that cannot: one that
/// [`crate::shown::printable`] replaces. Allocates nothing.
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

/// Write as much as possible: a handler cannot report an error.
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

/// `number` in decimal. Allocates nothing.
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
    fn the_handler_hides_the_same_characters_as_every_other_message() {
        for character in (0..0x1_0000).filter_map(char::from_u32).filter(|c| !matches!(c, '\n' | '\t')) {
            let text = format!("a{character}b");
            let is_shown = crate::shown::printable(&text) == text;
            let expected = if is_shown { (text.len(), 0) } else { (1, character.len_utf8()) };
            assert_eq!(shown_first(text.as_bytes()), expected, "U+{:04X}", u32::from(character));
        }
    }

    #[test]
    fn decimal_agrees_with_to_string() {
        for number in [0, 7, 10, 1_234_567, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; DIGITS]), number.to_string().as_bytes());
        }
    }

    #[test]
    fn the_alarm_ends_the_process_with_the_code_for_a_crash_that_is_not_noted() {
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
