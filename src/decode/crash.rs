//! A native decoder that crashes takes its process down, but not unseen: which image it was is said on
//! standard error, and told to whoever watches, who has [`LAST_WORDS_SECONDS`] to note it.
//!
//! - The thread that crashed never runs again, so nothing that it leaves half done is used. The others go
//!   on until the watcher leaves; they may hang on a lock that the crash has left taken, and then the
//!   alarm ends the process.
//! - A crash outside the decoders is said, too, and goes the way it would have gone.
//! - The handler calls only what POSIX allows there: it takes no lock and no memory.
#![allow(unsafe_code, reason = "signal handlers, and what a crashed thread was at work on")]

use std::cell::Cell;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering::SeqCst};

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

thread_local! {
    /// The record that this thread decodes. Without a destructor, so a handler may read it at any time.
    static WORK: Cell<*const RecordMeta> = const { Cell::new(ptr::null()) };
}

/// The record of the first crash; it lies on the stack of a thread that waits for ever.
static CRASHED: AtomicPtr<RecordMeta> = AtomicPtr::new(ptr::null_mut());
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Where the handler wakes the watcher up; -1 while nobody watches.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// While it lives, a crash of this thread is put down to the record.
#[derive(Debug)]
pub(super) struct AtWork<'a>(&'a RecordMeta);

impl<'a> AtWork<'a> {
    pub(super) fn on(record: &'a RecordMeta) -> Self {
        WORK.set(record);
        Self(record)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        debug_assert!(ptr::eq(WORK.get(), self.0), "a thread decodes one record at a time");
        WORK.set(ptr::null());
    }
}

/// The record on which a decoder has crashed.
#[derive(Debug, Clone)]
pub struct Crash {
    pub shard: Arc<ShardRef>,
    /// Position in the shard, from 0.
    pub record_index: u64,
    pub image_id: String,
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

    /// Wait until a decoder crashes. The process is to be left soon: [`leave`].
    ///
    /// # Errors
    /// When the pipe cannot be read.
    pub fn wait(mut self) -> io::Result<Crash> {
        self.0.read_exact(&mut [0])?;
        // SAFETY: the handler has set it to a record borrowed by an `AtWork` of the thread that it ran in,
        // before it wrote to the pipe. That thread waits in the handler for ever, so the record lives as
        // long as the process, and nobody writes to it.
        let record = unsafe { &*CRASHED.load(SeqCst) };
        Ok(Crash {
            shard: Arc::clone(&record.shard),
            record_index: record.record_index,
            image_id: record.image_id.clone(),
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
        say(&[b"sluice: crashed outside the decoders: ", signal_name(signal).as_bytes()]);
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
    let record = unsafe { &*work };
    let mut digits = [0; DIGITS];
    say(&[
        b"sluice: a decoder crashed: ",
        signal_name(signal).as_bytes(),
        b" on record ",
        decimal(record.record_index, &mut digits),
        b" of ",
        record.shard.name.as_bytes(),
        b", image_id ",
        record.image_id.as_bytes(),
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

/// One line on standard error.
fn say(words: &[&[u8]]) {
    words.iter().for_each(|word| write_all(libc::STDERR_FILENO, word));
    write_all(libc::STDERR_FILENO, b"\n");
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
