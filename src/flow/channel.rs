//! A bounded channel that measures how long its two stages wait.
//!
//! - Holds at most `capacity` items; a full channel blocks the sender, an empty one the receiver.
//! - Items are dropped as soon as no receiver is left, even if the sender is idle, because another thread may wait for
//!   what an item holds. crossbeam's own channels keep them until the sender has gone, too.
//! - Only calls that wait are timed, so a call that does not wait reads no clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, TryRecvError, select};

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

/// What came first at one of two channels.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<T, U> {
    /// An item of the channel.
    Item(T),
    /// An item of the other channel.
    Other(U),
    /// One of the two is empty and has no sender left.
    Ended,
}

/// Sending end; waiting for room counts as the sending stage's `blocked` time.
#[derive(Debug)]
pub struct Sender<T> {
    inner: crossbeam_channel::Sender<T>,
    /// Takes back an item that was sent after the last receiver had gone. A channel of capacity 0 keeps no items.
    unread: Option<crossbeam_channel::Receiver<T>>,
    /// Set once no receiver is left.
    is_over: Arc<AtomicBool>,
    meter: Arc<StageMeter>,
}

/// Receiving end; waiting for an item counts as the receiving stage's `starved` time.
#[derive(Debug)]
pub struct Receiver<T> {
    inner: Arc<Unread<T>>,
    meter: Arc<StageMeter>,
}

/// The items of a channel, shared by its receivers.
#[derive(Debug)]
struct Unread<T> {
    items: crossbeam_channel::Receiver<T>,
    is_over: Arc<AtomicBool>,
}

impl<T> Drop for Unread<T> {
    fn drop(&mut self) {
        // in this order: the sender of an item that arrives too late for this loop finds the flag set
        self.is_over.store(true, SeqCst);
        self.items.try_iter().for_each(drop);
    }
}

/// A channel of at most `capacity` items from the stage of `sender` to the stage of `receiver`.
pub fn channel<T>(
    capacity: usize,
    sender: &Arc<StageMeter>,
    receiver: &Arc<StageMeter>,
) -> (Sender<T>, Receiver<T>) {
    let (inner, items) = crossbeam_channel::bounded(capacity);
    let unread = (capacity > 0).then(|| items.clone());
    let is_over = Arc::new(AtomicBool::new(false));
    let items = Unread { items, is_over: Arc::clone(&is_over) };
    let receiver = Receiver { inner: Arc::new(items), meter: Arc::clone(receiver) };
    (Sender { inner, unread, is_over, meter: Arc::clone(sender) }, receiver)
}

impl<T> Sender<T> {
    /// Send `item`, waiting for room. The item is dropped if no receiver is left.
    pub fn send(&self, item: T) -> Result<(), Disconnected> {
        if let Err(unsent) = self.inner.try_send(item) {
            let start = Instant::now();
            // the last receiver makes room when it goes
            let sent = self.inner.send(unsent.into_inner());
            self.meter.add_blocked(start.elapsed());
            sent.map_err(|_| Disconnected)?;
        }
        if self.is_over.load(SeqCst) {
            self.unread.iter().for_each(|items| items.try_iter().for_each(drop));
            return Err(Disconnected);
        }
        Ok(())
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
        self.inner.items.try_recv().ok()
    }

    /// The next item, waiting for it no longer than `patience`.
    pub fn recv_timeout(&self, patience: Duration) -> Result<T, RecvTimeoutError> {
        match self.inner.items.try_recv() {
            Ok(item) => return Ok(item),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => {}
        }
        let start = Instant::now();
        let item = self.inner.items.recv_timeout(patience);
        self.meter.add_starved(start.elapsed());
        item
    }

    /// The next item, waiting for it; `None` once the channel is empty and no sender is left.
    pub fn recv(&self) -> Option<T> {
        match self.inner.items.try_recv() {
            Ok(item) => return Some(item),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        let start = Instant::now();
        let item = self.inner.items.recv();
        self.meter.add_starved(start.elapsed());
        item.ok()
    }

    /// The next item of this channel or of `other`, whichever comes first. Items of this channel go first.
    pub fn recv_or<U>(&self, other: &crossbeam_channel::Receiver<U>) -> Arrival<T, U> {
        if let Ok(item) = self.inner.items.try_recv() {
            return Arrival::Item(item);
        }
        let start = Instant::now();
        let arrival = select! {
            recv(self.inner.items) -> item => item.map_or(Arrival::Ended, Arrival::Item),
            recv(other) -> item => item.map_or(Arrival::Ended, Arrival::Other),
        };
        self.meter.add_starved(start.elapsed());
        arrival
    }

    /// The next item, waiting for it until `stop` asks for a drain.
    pub fn recv_unless(&self, stop: &StopSignal) -> Result<T, Halt> {
        match self.inner.items.try_recv() {
            Ok(item) => return Ok(item),
            Err(TryRecvError::Disconnected) => return Err(Halt::Ended),
            Err(TryRecvError::Empty) => {}
        }
        let start = Instant::now();
        let item = select! {
            recv(self.inner.items) -> item => item.map_err(|_| Halt::Ended),
            recv(stop.asked()) -> _ => Err(Halt::Stopped),
        };
        self.meter.add_starved(start.elapsed());
        item
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), meter: Arc::clone(&self.meter) }
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
    fn whichever_of_two_channels_has_an_item_first_is_received() {
        let (tx, rx) = pair(1);
        let (other_tx, other) = crossbeam_channel::bounded(1);
        other_tx.send("other").expect("room");
        tx.send(1).expect("room");
        assert_eq!([rx.recv_or(&other), rx.recv_or(&other)], [Arrival::Item(1), Arrival::Other("other")]);
        drop(tx);
        assert_eq!(rx.recv_or(&other), Arrival::Ended);
        let (_tx, rx) = pair(1);
        drop(other_tx);
        assert_eq!(rx.recv_or(&other), Arrival::Ended);
    }

    #[test]
    fn sending_without_a_receiver_is_an_error() {
        let (tx, rx) = pair(1);
        drop(rx);
        assert_eq!(tx.send(1), Err(Disconnected));
    }

    #[test]
    fn items_are_dropped_with_the_last_receiver_even_if_the_sender_is_idle() {
        let meter = Arc::new(StageMeter::new("test", 1));
        let (tx, rx) = channel(2, &meter, &meter);
        let item = Arc::new(());
        tx.send(Arc::clone(&item)).expect("room");
        let other = rx.clone();
        drop(rx);
        assert_eq!(Arc::strong_count(&item), 2, "a receiver is left");
        drop(other);
        assert_eq!(Arc::strong_count(&item), 1);
        tx.send(Arc::clone(&item)).expect_err("no receiver is left");
        assert_eq!(Arc::strong_count(&item), 1);
    }

    #[test]
    fn an_item_sent_while_the_last_receiver_goes_is_dropped() {
        let meter = Arc::new(StageMeter::new("test", 1));
        let item = Arc::new(());
        for _ in 0..1000 {
            let (tx, rx) = channel(1, &meter, &meter);
            std::thread::scope(|scope| {
                scope.spawn(move || drop(rx));
                // either result is right
                let _ = tx.send(Arc::clone(&item));
            });
            assert_eq!(Arc::strong_count(&item), 1);
        }
    }

    #[test]
    fn a_sender_that_waits_for_room_ends_with_the_last_receiver() {
        for capacity in [0, 1] {
            let (tx, rx) = pair(capacity);
            let sent = std::thread::scope(|scope| {
                let sending = scope.spawn(|| (0..=capacity as u32).try_for_each(|i| tx.send(i)));
                drop(rx);
                sending.join().expect("no panic")
            });
            assert_eq!(sent, Err(Disconnected));
        }
    }
}
