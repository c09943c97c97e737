//! A place in the output order, reserved first and filled later.
//!
//! Threads finish out of order. Reading the slots in the order in which they were reserved restores the order. Bounding
//! the queue of slots bounds the work in flight.
//!
//! - Filling never blocks, so it is safe on a rayon thread.
//! - A filler that is dropped unused, by a thread that failed, leaves the slot vacant. Its reader does not hang.

use std::time::Instant;

use crossbeam_channel::Select;

use super::{StageMeter, StopSignal};

/// The right to fill one [`Slot`].
#[derive(Debug)]
pub struct Filler<T>(crossbeam_channel::Sender<T>);

/// One reserved place.
#[derive(Debug)]
pub struct Slot<T>(crossbeam_channel::Receiver<T>);

/// Reserve a place.
pub fn slot<T>() -> (Filler<T>, Slot<T>) {
    let (tx, rx) = crossbeam_channel::bounded(1);
    (Filler(tx), Slot(rx))
}

impl<T> Filler<T> {
    /// Fill the slot. If its reader is gone, the value is dropped.
    pub fn fill(self, value: T) {
        // the channel has room for one value and this is its only sender, so it is never full
        let _ = self.0.try_send(value);
    }
}

impl<T> Slot<T> {
    /// A slot that was full from the start.
    pub fn filled(value: T) -> Self {
        let (filler, slot) = slot();
        filler.fill(value);
        slot
    }

    /// Wait until the slot has a value or will never have one (`true`), or until `stop` asks for a drain (`false`).
    pub fn is_ready_unless(&self, stop: &StopSignal, meter: &StageMeter) -> bool {
        let mut either = Select::new();
        let value = either.recv(&self.0);
        let start = Instant::now();
        either.recv(stop.asked());
        let ready = either.ready();
        meter.add_starved(start.elapsed());
        ready == value || !self.0.is_empty()
    }

    /// Wait for the value, as `starved` time of `meter`; `None` if it will never come.
    pub fn wait(self, meter: &StageMeter) -> Option<T> {
        if let Ok(value) = self.0.try_recv() {
            return Some(value);
        }
        let start = Instant::now();
        let value = self.0.recv().ok();
        meter.add_starved(start.elapsed());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_filled_in_any_order_are_read_in_the_order_reserved() {
        let meter = StageMeter::new("test", 1);
        let (fillers, slots): (Vec<_>, Vec<_>) = (0..10).map(|_| slot()).unzip();
        for (i, filler) in fillers.into_iter().enumerate().rev() {
            filler.fill(i);
        }
        let read: Vec<_> = slots.into_iter().filter_map(|slot| slot.wait(&meter)).collect();
        assert_eq!(read, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_drain_ends_the_wait_for_a_value() {
        let (meter, stop) = (StageMeter::new("test", 1), StopSignal::default());
        let (filler, slot) = slot();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| slot.is_ready_unless(&stop, &meter));
            stop.drain();
            assert!(!waiting.join().expect("no panic"));
        });
        filler.fill(7);
        assert!(slot.is_ready_unless(&stop, &meter), "a value takes precedence over a drain");
        assert_eq!(slot.wait(&meter), Some(7));
    }

    #[test]
    fn a_dropped_filler_leaves_the_slot_vacant() {
        let (filler, slot) = slot::<u8>();
        drop(filler);
        assert_eq!(slot.wait(&StageMeter::new("test", 1)), None);
    }
}
