//! A bounded channel that measures how long its two stages wait.
//!
//! - Holds at most `capacity` items; a full channel blocks the sender, an empty one the receiver.
//! - Only calls that wait are timed, so a call that does not wait reads no clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, TryRecvError, TrySendError, select};

use super::{StageMeter, StopSignal};

/// The other end is gone: the neighbour finished or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disconnected;

/// Why there is no further item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// The channel is empty and no sender is left.
    Ended,
    /// A drain was asked for first.
    Stopped,
}

/// Sending end; waiting for room counts as the sending stage's `blocked` time.
#[derive(Debug)]
pub struct Sender<T> {
    inner: crossbeam_channel::Sender<T>,
    meter: Arc<StageMeter>,
}

/// Receiving end; waiting for an item counts as the receiving stage's `starved` time.
#[derive(Debug)]
pub struct Receiver<T> {
    inner: crossbeam_channel::Receiver<T>,
    meter: Arc<StageMeter>,
}

/// A channel of at most `capacity` items from the stage of `sender` to the stage of `receiver`.
pub fn channel<T>(
    capacity: usize,
    sender: &Arc<StageMeter>,
    receiver: &Arc<StageMeter>,
) -> (Sender<T>, Receiver<T>) {
    let (tx, rx) = crossbeam_channel::bounded(capacity);
    (Sender { inner: tx, meter: Arc::clone(sender) }, Receiver { inner: rx, meter: Arc::clone(receiver) })
}

impl<T> Sender<T> {
    /// Send `item`, waiting for room. The item is dropped if no receiver is left.
    pub fn send(&self, item: T) -> Result<(), Disconnected> {
        let item = match self.inner.try_send(item) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Disconnected(_)) => return Err(Disconnected),
            Err(TrySendError::Full(item)) => item,
        };
        let start = Instant::now();
        let sent = self.inner.send(item);
        self.meter.add_blocked(start.elapsed());
        sent.map_err(|_| Disconnected)
    }
}

/// Send `item`, waiting for a receiver. If `stop` asks for a drain first, the item is dropped.
pub fn hand_over<T>(sender: &crossbeam_channel::Sender<T>, item: T, stop: &StopSignal) -> Result<(), Halt> {
    select! {
        send(sender, item) -> sent => sent.map_err(|_| Halt::Ended),
        recv(stop.asked()) -> _ => Err(Halt::Stopped),
    }
}

impl<T> Receiver<T> {
    /// The next item, if one has arrived.
    pub fn try_recv(&self) -> Option<T> {
        self.inner.try_recv().ok()
    }

    /// The next item, waiting for it no longer than `patience`.
    pub fn recv_timeout(&self, patience: Duration) -> Result<T, RecvTimeoutError> {
        match self.inner.try_recv() {
            Ok(item) => return Ok(item),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => {}
        }
        let start = Instant::now();
        let item = self.inner.recv_timeout(patience);
        self.meter.add_starved(start.elapsed());
        item
    }

    /// The next item, waiting for it; `None` once the channel is empty and no sender is left.
    pub fn recv(&self) -> Option<T> {
        match self.inner.try_recv() {
            Ok(item) => return Some(item),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        let start = Instant::now();
        let item = self.inner.recv();
        self.meter.add_starved(start.elapsed());
        item.ok()
    }

    /// The next item, waiting for it until `stop` asks for a drain.
    pub fn recv_unless(&self, stop: &StopSignal) -> Result<T, Halt> {
        match self.inner.try_recv() {
            Ok(item) => return Ok(item),
            Err(TryRecvError::Disconnected) => return Err(Halt::Ended),
            Err(TryRecvError::Empty) => {}
        }
        let start = Instant::now();
        let item = select! {
            recv(self.inner) -> item => item.map_err(|_| Halt::Ended),
            recv(stop.asked()) -> _ => Err(Halt::Stopped),
        };
        self.meter.add_starved(start.elapsed());
        item
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), meter: Arc::clone(&self.meter) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(capacity: usize) -> (Sender<u32>, Receiver<u32>) {
        let meter = Arc::new(StageMeter::new("test", 1));
        channel(capacity, &meter, &meter)
    }

    #[test]
    fn items_arrive_in_order_and_the_end_is_seen() {
        let (tx, rx) = pair(2);
        let received = std::thread::scope(|scope| {
            scope.spawn(move || (0..100).try_for_each(|i| tx.send(i)));
            std::iter::from_fn(|| rx.recv()).collect::<Vec<_>>()
        });
        assert_eq!(received, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_drain_ends_the_wait_of_a_receiver() {
        let (tx, rx) = pair(1);
        let stop = StopSignal::default();
        tx.send(1).expect("room");
        assert!(!stop.is_draining());
        let waited = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| (rx.recv_unless(&stop), rx.recv_unless(&stop)));
            stop.clone().drain();
            waiting.join().expect("no panic")
        });
        assert_eq!(waited, (Ok(1), Err(Halt::Stopped)));
        assert!(stop.is_draining());
        drop(tx);
        assert_eq!(rx.recv_unless(&stop), Err(Halt::Ended));
    }

    #[test]
    fn sending_without_a_receiver_is_an_error() {
        let (tx, rx) = pair(1);
        drop(rx);
        assert_eq!(tx.send(1), Err(Disconnected));
    }
}
